//! Values and their types. Small values travel in journals; files and directories travel as references to objects.

mod convert;
mod encoding;
mod text;

use std::fmt;
use std::sync::Arc;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

pub use self::convert::{Mismatch, from_json};
pub use self::text::{from_output, from_text};
use crate::id::ObjectId;

/// What an input, an output or an element may be declared to hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Type {
    String,
    /// 64 bits, signed.
    Integer,
    Number,
    Boolean,
    /// One of these texts.
    Enum(Vec<String>),
    /// A list; the type of its elements, if it is declared.
    List(Option<Box<Type>>),
    Object,
    File,
    Directory,
    /// Not known before the run: what an expression yields whose type cannot be derived.
    Any,
}

impl Type {
    /// Whether a value of type `given` may stand where this type is asked for, as far as is known before the run.
    pub fn accepts(&self, given: &Self) -> bool {
        match (self, given) {
            (Self::Any, _) | (_, Self::Any) | (Self::Number, Self::Integer) | (Self::String, Self::Enum(_)) => true,
            (Self::List(None), Self::List(_)) | (Self::List(_), Self::List(None)) => true,
            (Self::List(Some(element)), Self::List(Some(given))) => element.accepts(given),
            // Which text it is shows at the run.
            (Self::Enum(_), Self::String) => true,
            (Self::Enum(values), Self::Enum(given)) => given.iter().any(|value| values.contains(value)),
            (
                Self::String
                | Self::Integer
                | Self::Number
                | Self::Boolean
                | Self::Enum(_)
                | Self::List(_)
                | Self::Object
                | Self::File
                | Self::Directory,
                _,
            ) => self == given,
        }
    }

    /// Whether a value of it is, or is a list of, files or directories. Of what an object holds nothing is known.
    pub fn has_files(&self) -> bool {
        match self {
            Self::File | Self::Directory => true,
            Self::List(Some(element)) => element.has_files(),
            Self::String
            | Self::Integer
            | Self::Number
            | Self::Boolean
            | Self::Enum(_)
            | Self::List(None)
            | Self::Object
            | Self::Any => false,
        }
    }
}

/// The type in words, as it follows "expected": `an integer`, `a list (each element a file)`.
impl fmt::Display for Type {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::String => formatter.write_str("a string"),
            Self::Integer => formatter.write_str("an integer"),
            Self::Number => formatter.write_str("a number"),
            Self::Boolean => formatter.write_str("a boolean (true or false)"),
            Self::Enum(values) => write!(formatter, "one of {}", values.join(", ")),
            Self::List(None) => formatter.write_str("a list"),
            Self::List(Some(element)) => write!(formatter, "a list (each element {element})"),
            Self::Object => formatter.write_str("an object"),
            Self::File => formatter.write_str("a file"),
            Self::Directory => formatter.write_str("a directory"),
            Self::Any => formatter.write_str("any value"),
        }
    }
}

/// A name as a file system holds it: bytes, not necessarily UTF-8; never empty, `.`, `..`, or with a `/` or NUL in it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct FileName(Arc<[u8]>);

/// A name that no file system entry can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} cannot be the name of a file")]
pub struct InvalidFileName(pub String);

impl FileName {
    /// # Errors
    /// When no file system entry can have this name, or it is longer than 255 bytes.
    pub fn new(bytes: &[u8]) -> Result<Self, InvalidFileName> {
        let valid = (1..=255).contains(&bytes.len())
            && bytes != b"."
            && bytes != b".."
            && !bytes.contains(&b'/')
            && !bytes.contains(&0);
        if valid {
            Ok(Self(Arc::from(bytes)))
        } else {
            Err(InvalidFileName(String::from_utf8_lossy(bytes).into_owned()))
        }
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<Vec<u8>> for FileName {
    type Error = InvalidFileName;

    fn try_from(bytes: Vec<u8>) -> Result<Self, InvalidFileName> {
        Self::new(&bytes)
    }
}

impl From<FileName> for Vec<u8> {
    fn from(name: FileName) -> Self {
        name.0.to_vec()
    }
}

/// Shows the name with everything that is not printable UTF-8 escaped.
impl fmt::Display for FileName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for character in chunk.valid().chars() {
                if character.is_control() {
                    write!(formatter, "{}", character.escape_default())?;
                } else {
                    write!(formatter, "{character}")?;
                }
            }
            for byte in chunk.invalid() {
                write!(formatter, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for FileName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "\"{self}\"")
    }
}

/// Whether an object is the bytes of a file or the manifest of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ObjectKind {
    File,
    Tree,
}

/// An object together with what placement and transfers need to know of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectRef {
    pub id: ObjectId,
    pub kind: ObjectKind,
    /// Bytes of content: of the file, or of all files of the tree.
    pub bytes: u64,
}

/// A file: the object that holds its bytes, the name it had where it was made, and whether it may be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRef {
    pub object: ObjectId,
    pub bytes: u64,
    pub name: FileName,
    /// The bit of it that goes with the bytes to wherever they go.
    pub executable: bool,
}

/// A file of a listed directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedFile {
    /// Path below the directory, its names joined by `/`.
    pub path: Vec<u8>,
    pub object: ObjectId,
    pub bytes: u64,
    pub executable: bool,
}

/// A directory: the object that is its tree's root manifest, and the name it had where it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryRef {
    pub object: ObjectId,
    pub bytes: u64,
    pub files: u64,
    pub name: FileName,
    /// The files in it, in order of their paths; present only where an expression asks for them with `files()`.
    pub listing: Option<Arc<Vec<ListedFile>>>,
}

/// A value of any [`Type`]. `Null` is the output of a step that was skipped, or an optional one that was not written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Value {
    Null,
    Boolean(bool),
    Integer(i64),
    Number(f64),
    String(Arc<str>),
    List(Arc<Vec<Value>>),
    Object(Arc<IndexMap<String, Value>>),
    File(FileRef),
    Directory(DirectoryRef),
}

impl Value {
    /// Roughly how many bytes it takes in a journal or a frame.
    pub fn stored_bytes(&self) -> usize {
        match self {
            Self::Null | Self::Boolean(_) => 1,
            Self::Integer(_) | Self::Number(_) => 9,
            Self::String(text) => text.len() + 4,
            Self::List(values) => 4 + values.iter().map(Self::stored_bytes).sum::<usize>(),
            Self::Object(fields) => {
                4 + fields.iter().map(|(name, value)| name.len() + 4 + value.stored_bytes()).sum::<usize>()
            }
            Self::File(file) => 48 + file.name.as_bytes().len(),
            Self::Directory(tree) => {
                let files = tree.listing.iter().flat_map(|listing| listing.iter());
                56 + tree.name.as_bytes().len() + files.map(|file| 48 + file.path.len()).sum::<usize>()
            }
        }
    }

    /// Whether it is too large for an output that travels in a journal. A listing that a workflow asks for has a limit of
    /// its own.
    pub fn is_too_large(&self) -> bool {
        let is_listed = matches!(self, Self::Directory(tree) if tree.listing.is_some());
        !is_listed && self.stored_bytes() > crate::limits::VALUE_BYTES_MAX
    }

    pub fn string(text: impl AsRef<str>) -> Self {
        Self::String(Arc::from(text.as_ref()))
    }

    pub fn list(values: Vec<Self>) -> Self {
        Self::List(Arc::new(values))
    }

    /// Calls `visit` for every object that this value refers to, in order of appearance, repeats included.
    pub fn visit_objects(&self, visit: &mut dyn FnMut(ObjectRef)) {
        match self {
            Self::File(file) => visit(ObjectRef { id: file.object, kind: ObjectKind::File, bytes: file.bytes }),
            Self::Directory(tree) => visit(ObjectRef { id: tree.object, kind: ObjectKind::Tree, bytes: tree.bytes }),
            Self::List(values) => values.iter().for_each(|value| value.visit_objects(visit)),
            Self::Object(fields) => fields.values().for_each(|value| value.visit_objects(visit)),
            Self::Null | Self::Boolean(_) | Self::Integer(_) | Self::Number(_) | Self::String(_) => {}
        }
    }
}
