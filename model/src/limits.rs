//! Every limit of the product, each with its reason.

use std::time::Duration;

/// Elements of one fan-out: ids and sets hold them in 32 bits, and a million is what the engine is measured with; ten
/// times that is room to grow.
pub const ELEMENTS_MAX: u32 = 10_000_000;
/// Steps of one workflow: a graph that a person or a generator writes; checked in linear time.
pub const STEPS_MAX: usize = 10_000;
/// Bytes of a workflow file: parsed at once in memory, on every submission.
pub const WORKFLOW_BYTES_MAX: usize = 4 << 20;
/// Bytes of one value that travels in the journal; anything larger is a file.
pub const VALUE_BYTES_MAX: usize = 256 << 10;
/// Encoded inputs of one execution: beyond it the command that brings them could not be decoded.
pub const INPUT_BYTES_MAX: usize = 8 << 20;
/// Values that go along with one step that is delegated: what is known already is small, or is a file.
pub const DELEGATED_BYTES_MAX: usize = 256 << 10;
/// Longest wait before a retry, so that a long outage ends in an attempt within minutes of its end.
pub const RETRY_BACKOFF_MAX: Duration = Duration::from_secs(300);
/// Attempts of one execution, by its author.
pub const ATTEMPTS_MAX: u32 = 100;
/// How many times as much memory an attempt may ask for as the one before it: one that needs more than that was never told
/// how much it needs.
pub const MEMORY_GROWTH_MAX: u32 = 16;
/// Payload of one record in an embedded store: above it sled writes a file of its own that it never syncs.
pub const RECORD_BYTES_MAX: usize = 16 << 10;
/// Encoded bytes of one frame of a session: tonic decodes up to 4 MiB, and a heartbeat must not wait behind more.
pub const FRAME_BYTES_MAX: usize = 1 << 20;
/// Encoded bytes of one message that is decoded at all: the inventory of a session is one frame, whatever its size, and a
/// command may carry values of a few hundred kilobytes each.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Elements that one frame may name one by one. Columns with repeats grow when they are read: without an end a frame of a
/// few bytes could fill the memory.
pub const FRAME_ELEMENTS_MAX: usize = 2_000_000;
/// Depth of a value that is read from the wire: lists within lists; each level is one call deep.
pub const VALUE_DEPTH_MAX: usize = 128;
/// How long an agent may start new dispatches unheard.
pub const SESSION_LEASE: Duration = Duration::from_secs(45);
/// How long an agent may start the steps of a fragment unheard, and the control plane gives nothing of it away.
pub const WORK_LEASE: Duration = Duration::from_secs(15 * 60);
/// Time between heartbeats of a small fleet; paced up so that all agents together send at most a hundred a
/// second: an answered one costs the server some 0.1 ms.
pub const HEARTBEAT: Duration = Duration::from_secs(15);
pub const HEARTBEATS_PER_SECOND_MAX: u32 = 100;
/// After its own start the control plane declares no agent lost for this long.
pub const RESTART_GRACE: Duration = Duration::from_secs(300);
/// Reports that an agent may have on their way unacknowledged.
pub const REPORT_CREDITS: u32 = 4_096;
/// Acknowledged reports that an agent keeps for a control plane that is restored from a backup: tens of thousands of
/// outcomes, as a busy site has them in a day, in a journal that is still read in a moment.
pub const REPORTS_KEPT_BYTES: u64 = 32 << 20;
/// Memory that finished runs may take in the control plane before the oldest are in the history alone: a day of ordinary
/// work, and little beside what the machine of a server has.
pub const FINISHED_RUNS_BYTES: u64 = 256 << 20;
/// Executions dispatched to an agent and not finished, beyond what it has room to run at once: deep enough that it never
/// waits for a round trip, shallow enough that another site can still take the rest.
pub const DISPATCH_AHEAD: u32 = 4_096;
/// Runs that have not ended, unless the configuration says otherwise: a small one takes some kilobytes of memory, so that
/// as many fit into a small machine.
pub const LIVE_RUNS_MAX: u64 = 100_000;
/// Priorities that people may give: enough to tell kinds of work apart, few enough that waiting makes up for any of them.
pub const PRIORITY_MIN: i8 = -100;
pub const PRIORITY_MAX: i8 = 100;
/// The largest limit on what goes on at a time: no larger than what one fan-out may be.
pub const CONCURRENCY_MAX: u32 = ELEMENTS_MAX;
/// The largest share of a project: enough to tell projects apart, far from what sums of them could not hold.
pub const SHARE_MAX: u32 = 1_000;
/// Waiting that makes up for one point of priority: what is passed over for so long counts one more, so that nothing
/// waits for ever; between the ends of the scale lies a little more than an hour and a half.
pub const AGEING: Duration = Duration::from_secs(30);
/// How long the work that is dispatched to an agent beyond what runs there may take, roughly: far longer than a round
/// trip, short enough that urgent work and that of others gets its turn soon.
pub const DISPATCH_AHEAD_TIME: Duration = Duration::from_secs(5);
/// Steps of the innermost loops of one look ahead over a run, roughly: about a tenth of a second at most, during which
/// nobody else is served; with a quarter of it, one in ten of the recorded workflows moves a tenth more bytes.
pub const LOOK_AHEAD_EFFORT: usize = 2_000_000;
/// GPUs that one execution may ask for: more than any machine has, and most clusters give.
pub const GPUS_MAX: u32 = 4_096;
/// Nodes that one execution may ask for: the largest clusters have about as many.
pub const NODES_MAX: u32 = 16_384;
/// Tasks of one execution on each of its nodes: more than any node has CPUs.
pub const TASKS_PER_NODE_MAX: u32 = 1_024;
/// Further options of the job of one execution.
pub const SBATCH_OPTIONS_MAX: usize = 32;
/// Crashes of an agent while an execution runs there, after which the execution is given up as poisonous.
pub const POISON_CRASHES_MAX: u32 = 3;
/// The same for one version of an action, whatever its runs, if none of its executions succeeds in between: it is not
/// started any more.
pub const POISON_VERSION_CRASHES_MAX: u32 = 10;
/// At one site alone it may be the site.
pub const POISON_VERSION_SITES_MIN: usize = 2;
/// How long crashes of a version count.
pub const POISON_MEMORY: Duration = Duration::from_secs(24 * 3_600);
/// Largest object that goes to the bucket in one request; larger ones go in parts, and can be resumed.
pub const SINGLE_PUT_BYTES_MAX: u64 = 16 << 20;
/// Smallest part of a multipart upload.
pub const PART_BYTES_MIN: u64 = 16 << 20;
/// Most parts of one upload: S3 allows 10,000.
pub const PARTS_MAX: u64 = 9_000;
/// How long a presigned URL lives.
pub const URL_LIFETIME: Duration = Duration::from_secs(15 * 60);
/// Life of an agent's certificate; renewed at half of it.
pub const CERTIFICATE_LIFETIME: Duration = Duration::from_secs(24 * 3_600);
/// How far back a certificate is dated, for clocks that are late.
pub const CERTIFICATE_BACKDATE: Duration = Duration::from_secs(300);
/// How far a site's clock may be off before people are told: what it puts on record is off by as much.
pub const CLOCK_OFFSET_WARN: Duration = Duration::from_secs(60);
/// How far it may be off before the site gets no new work: beyond it, certificates that have just been made are not valid
/// there, and times in the history mean nothing.
pub const CLOCK_OFFSET_MAX: Duration = CERTIFICATE_BACKDATE;
/// How long after the end of its certificate a known key may recover.
pub const RECOVERY_WINDOW: Duration = Duration::from_secs(90 * 24 * 3_600);
/// Recoveries of one agent before an administrator must allow more.
pub const RECOVERIES_MAX: u32 = 5;
/// Files in one output directory: its manifests must fit into memory.
pub const TREE_ENTRIES_MAX: u64 = 10_000_000;
/// Depth of an output directory: the walk is recursive, and paths must stay usable.
pub const TREE_DEPTH_MAX: usize = 256;
/// Files that `files()` lists: each becomes an element or a value in the journal.
pub const LISTING_FILES_MAX: usize = 100_000;
/// Depth of a YAML document: what people write is about ten deep, and the tree is walked recursively.
pub const YAML_DEPTH_MAX: usize = 64;
/// Values of a YAML document with its aliases written out: ten for each of the most steps, and room for lists of elements;
/// a bomb of aliases ends here.
pub const YAML_NODES_MAX: usize = 500_000;
/// Bytes of one CEL expression: its parser descends once for each `?:`, within a thread's usual stack.
pub const EXPRESSION_BYTES_MAX: usize = 2_048;
/// Depth of one CEL expression: it is walked recursively.
pub const EXPRESSION_DEPTH_MAX: usize = 96;
/// Steps that the evaluation of one expression may take: enough to filter a listing of [`LISTING_FILES_MAX`] files, and
/// over within a second, for it holds up everything else that the control plane decides.
pub const EXPRESSION_COST_MAX: u64 = 5_000_000;
/// Bytes of a manifest of an action: parsed at once in memory.
pub const MANIFEST_BYTES_MAX: usize = 256 << 10;
/// Bytes of the file of a handler that is parsed before it is taken: it may be nested once for each byte, and takes stack for it.
pub const HANDLER_BYTES_MAX: usize = 512 << 10;
/// Bytes and names in the folder of an action: code that each site fetches once. What is larger is data, and an input.
pub const BUNDLE_BYTES_MAX: u64 = 1 << 30;
pub const BUNDLE_ENTRIES_MAX: u64 = 100_000;
/// Bytes of the version of an action: part of a name that people type.
pub const ACTION_VERSION_BYTES_MAX: usize = 64;
/// Bytes of all `action.yaml` that people have pushed: the control plane has them in memory and in every checkpoint; most have
/// one kilobyte.
pub const ACTION_MANIFESTS_BYTES_MAX: usize = 64 << 20;
/// Repositories of all projects: what the last look at each has found is in memory and in every checkpoint.
pub const REPOSITORIES_MAX: usize = 256;
/// Folders of actions in one repository: the outcome of each is kept.
pub const REPOSITORY_ACTIONS_MAX: usize = 500;
/// Bytes of a repository on the server's disk, as git sends them and as they are laid out: code, of which one action may have
/// a quarter.
pub const REPOSITORY_BYTES_MAX: u64 = 4 << 30;
/// The shortest time from one import by the clock to the next: each asks another machine.
pub const REPOSITORY_PERIOD_MIN: Duration = Duration::from_secs(10);
pub const REPOSITORY_PERIOD_MAX: Duration = Duration::from_secs(366 * 86_400);
/// How long one look at a repository may take, from its turn to its end: some gigabytes over a slow link.
pub const IMPORT_TIME_MAX: Duration = Duration::from_secs(1_800);
/// Repositories that are looked at at once, and folders of each that are packed at once: they share the server's disk and
/// cores with everything else that it does.
pub const IMPORTS_AT_ONCE: usize = 2;
pub const PACKED_AT_ONCE: usize = 4;
/// Bytes of what an import has written that are kept, and of one message in it: what git says last is what matters.
pub const IMPORT_LOG_BYTES_MAX: usize = 16 << 10;
pub const IMPORT_MESSAGE_BYTES_MAX: usize = 2 << 10;
/// Faults of one folder that are kept of an import.
pub const IMPORT_FAULTS_MAX: usize = 10;
/// Workflows that are deployed at a time: each is in memory and in every checkpoint with its text.
pub const DEPLOYMENTS_MAX: usize = 1_000;
/// Records that a source may have emitted and not been told of: as many go over the link in one call.
pub const EMITTED_AT_ONCE_MAX: usize = 64;
/// Bytes of a record with its offset and its key, as JSON: as many as are on their way at once fit into one call.
pub const EMITTED_BYTES_MAX: usize = 32 << 10;
/// Bytes of the offset of a source: it is in the journal with every record.
pub const OFFSET_BYTES_MAX: usize = 4 << 10;
/// Bytes of the key of a record, and how many keys of a source are remembered: those of what it may emit again after it has
/// failed, and not of all that it ever has.
pub const EMITTED_KEY_BYTES_MAX: usize = 256;
pub const EMITTED_KEYS_KEPT: usize = 1_000;
/// Processes of one action that may wait at a site with nothing to do, and for how long at most: each holds its memory.
pub const WARM_MAX: u32 = 64;
pub const WARM_LASTS_MAX: Duration = Duration::from_secs(24 * 3600);
/// What times of a service may be: a look at it costs a process or a connection, and nobody waits longer than the other.
pub const SERVICE_TIMES_MIN: Duration = Duration::from_millis(100);
pub const SERVICE_TIMES_MAX: Duration = Duration::from_secs(24 * 3600);
/// How long a service may take to be well for the first time, where it does not say.
pub const SERVICE_START_PATIENCE: Duration = Duration::from_secs(60);
/// What is well for so long was begun again for good: what ends it after that is the first failure in a row.
pub const SERVICE_STEADY_AFTER: Duration = Duration::from_secs(60);
/// How long a service may take to end that was asked to.
pub const SERVICE_STOP_PATIENCE: Duration = Duration::from_secs(5);
/// How long an execution waits for a service of its site that it uses.
pub const SERVICE_PATIENCE: Duration = Duration::from_secs(60);
/// Looks in a row, and beginnings in a row, that an action may ask for.
pub const SERVICE_FAILURES_MAX: u32 = 1_000;
pub const SERVICE_RESTARTS_MAX: u32 = 1_000_000;
/// Services of one deployed workflow.
pub const SERVICES_MAX: usize = 100;
/// Signatures of one version: more keys than a release goes through; all go along with each step that uses it.
pub const ACTION_SIGNATURES_MAX: usize = 16;
/// Bytes of one output: the largest object that a bucket takes, 9,000 parts of 5 GiB.
pub const OUTPUT_BYTES_MAX: u64 = PARTS_MAX * (5 << 30);
/// Bytes of the manifest of one directory: it is held in memory whole, and the stream that brings it may lie about it.
pub const TREE_MANIFEST_BYTES_MAX: usize = 1 << 30;
/// Bytes of a path in an output directory: what a system call takes.
pub const TREE_PATH_BYTES_MAX: usize = 4_096;
/// Bytes of the target of a symbolic link: what a system call takes.
pub const SYMLINK_BYTES_MAX: usize = 4_095;
/// Objects of which a site remembers that they were verified: some 150 bytes each. A forgotten one is hashed again.
pub const VERIFIED_MAX: usize = 1_000_000;
/// Labels of one run: each is an entry of the history's index.
pub const RUN_LABELS_MAX: usize = 32;
/// Bytes of a project's name, and of the name and the value of a run's label: parts of keys of that index.
pub const RUN_LABEL_BYTES_MAX: usize = 256;

/// Objects that a site proposes to let go at a time: some hundred kilobytes of a frame, and a tree of ten thousand files
/// goes in a few rounds.
pub const EVICTION_OBJECTS_MAX: usize = 2_048;
/// A store that is fuller than this much of what it may take lets go of what nobody needs, until it is down to the other:
/// far enough apart that it does not begin again at once. The site closes at nine tenths of its disk.
pub const STORE_HIGH_PERCENT: u64 = 85;
pub const STORE_LOW_PERCENT: u64 = 75;
/// What was used within this time is not let go: whoever needs it next may not have said so yet.
pub const EVICTION_IDLE: Duration = Duration::from_secs(60);
/// Before a site looks again for what may go after there was nothing; doubled each time up to the other, because a look
/// goes through the whole store.
pub const EVICTION_PAUSE: Duration = Duration::from_secs(5);
pub const EVICTION_PAUSE_MAX: Duration = Duration::from_secs(300);

/// Copies of one object that a rule may ask for: more than one for each region there is serves nobody.
pub const REPLICAS_MAX: u32 = 64;
/// Versions of a project's policy that the control plane remembers: enough to see who has changed what this year, and each
/// may be as long as a workflow file.
pub const POLICY_VERSIONS_KEPT: usize = 32;

/// The longest `cache` of a step: what is older says little of what its programs do now.
pub const CACHE_MAX: Duration = Duration::from_secs(366 * 86_400);
/// Results that the control plane keeps to be taken again, and the bytes of their values: those that end first go first.
/// Some 300 bytes each beside the values, in memory and in every checkpoint.
pub const RESULTS_MAX: usize = 100_000;
pub const RESULTS_BYTES_MAX: usize = 64 << 20;

/// Moving objects that one heartbeat tells of: people look at a few, and a heartbeat is to stay small.
pub const MOVING_TOLD_MAX: usize = 16;

/// Executions of which one heartbeat tells why they wait for a batch system: it is to stay small, and the others of a fan-out
/// wait for the same.
pub const WAITING_TOLD_MAX: usize = 64;

/// Actions of which one heartbeat tells how far they are: it is to stay small.
pub const DEPLOYED_TOLD_MAX: usize = 64;

/// Characters of why an action cannot be made ready, as heartbeats tell it.
pub const DEPLOYED_REASON_CHARS_MAX: usize = 600;

/// Bytes that one measurement of the link to the control plane carries each way: a second of 32 Mbit/s, and a quarter of the
/// largest message.
pub const PROBE_BYTES_MAX: usize = 4 << 20;
/// Bytes that one measurement of the way to the bucket writes and reads: one request, long enough beside its round trips.
pub const BUCKET_PROBE_BYTES: u64 = 8 << 20;
