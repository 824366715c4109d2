//! Where what is.

use std::path::{Path, PathBuf};

use atoll_model::id::ObjectId;
use atoll_model::value::ObjectKind;

/// One file of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) id: ObjectId,
    pub(crate) variant: Variant,
}

/// An inode has one mode: so the bytes of a file that is executable in one place and not in another are kept twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Variant {
    Plain,
    Executable,
    Tree,
}

impl Variant {
    pub(crate) fn file(executable: bool) -> Self {
        if executable { Self::Executable } else { Self::Plain }
    }

    pub(crate) fn other(self) -> Self {
        match self {
            Self::Plain => Self::Executable,
            Self::Executable => Self::Plain,
            Self::Tree => Self::Tree,
        }
    }

    pub(crate) fn byte(self) -> u8 {
        match self {
            Self::Plain => 0,
            Self::Executable => 1,
            Self::Tree => 2,
        }
    }

    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        [Self::Plain, Self::Executable, Self::Tree].into_iter().find(|variant| variant.byte() == byte)
    }

    pub(crate) fn mode(self) -> u32 {
        match self {
            Self::Plain | Self::Tree => 0o444,
            Self::Executable => 0o555,
        }
    }

    pub(crate) fn kind(self) -> ObjectKind {
        match self {
            Self::Plain | Self::Executable => ObjectKind::File,
            Self::Tree => ObjectKind::Tree,
        }
    }
}

impl Key {
    pub(crate) fn new(id: ObjectId, variant: Variant) -> Self {
        Self { id, variant }
    }

    /// Below the store's root.
    pub(crate) fn path(&self) -> PathBuf {
        let hex = self.id.hex();
        let (folder, suffix) = match self.variant {
            Variant::Plain => ("objects", ""),
            Variant::Executable => ("objects", ".x"),
            Variant::Tree => ("trees", ""),
        };
        PathBuf::from(format!("{folder}/{}/{}{suffix}", &hex[..2], &hex[2..]))
    }

    /// A name that is one even outside of its folder.
    pub(crate) fn flat_name(&self) -> String {
        let suffix = match self.variant {
            Variant::Plain => "",
            Variant::Executable => ".x",
            Variant::Tree => ".tree",
        };
        format!("{}{suffix}", self.id.hex())
    }

    /// Which file stands at `folder/<two digits>/name`.
    pub(crate) fn parse(folder: &str, digits: &str, name: &str) -> Option<Self> {
        let (name, variant) = match (folder, name.strip_suffix(".x")) {
            ("objects", Some(name)) => (name, Variant::Executable),
            ("objects", None) => (name, Variant::Plain),
            ("trees", None) => (name, Variant::Tree),
            _ => return None,
        };
        Some(Self { id: format!("b3:{digits}{name}").parse().ok()?, variant })
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub(crate) root: PathBuf,
}

impl Layout {
    pub(crate) fn of(&self, key: &Key) -> PathBuf {
        self.root.join(key.path())
    }

    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub(crate) fn sealed(&self, seal: u64) -> PathBuf {
        self.root.join("sealed").join(seal.to_string())
    }
}

/// What is shown of a path: escaped, so that a name cannot forge lines or hide.
pub(crate) fn shown(path: &[u8]) -> String {
    path.utf8_chunks().fold(String::new(), |mut text, chunk| {
        text.extend(chunk.valid().chars().flat_map(|character| {
            let escape = character.is_control();
            let plain = (!escape).then_some(character);
            plain.into_iter().chain(escape.then(|| character.escape_default()).into_iter().flatten())
        }));
        chunk.invalid().iter().for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
        text
    })
}

pub(crate) fn shown_path(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    shown(path.as_os_str().as_bytes())
}
