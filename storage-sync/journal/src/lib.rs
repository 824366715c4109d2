//! A durable journal of framed, checksummed records on sled or redb: append a batch, make it durable, take a checkpoint,
//! read everything back. The rules that make an embedded store safe to trust live here and nowhere else.
