//! What is started: its path, its arguments, and its environment.

use std::ffi::CString;
use std::io;

/// A program with its arguments and its environment, to be started any number of times.
#[derive(Debug)]
pub struct Program {
    /// The path is the first of them.
    pub(crate) arguments: Vec<CString>,
    pub(crate) environment: Vec<Variable>,
}

/// A variable of an environment, as `NAME=value`.
#[derive(Debug)]
pub(crate) struct Variable {
    name_bytes: usize,
    pub(crate) text: CString,
}

impl Program {
    /// The path of a program before its arguments; it is looked for nowhere else. Of variables with the same name the last
    /// counts.
    ///
    /// # Errors
    /// `InvalidInput` when there is no program, or a byte 0 in any of it.
    pub fn new<'a>(
        command: &[impl AsRef<[u8]>],
        environment: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    ) -> io::Result<Self> {
        if command.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "there is no command"));
        }
        let mut variables: Vec<Variable> = Vec::new();
        for (name, value) in environment {
            variables.retain(|variable| variable.name() != name);
            variables.push(Variable::new(name, value)?);
        }
        let arguments = command.iter().map(|argument| Ok(CString::new(argument.as_ref())?));
        Ok(Self { arguments: arguments.collect::<io::Result<_>>()?, environment: variables })
    }
}

impl Variable {
    pub(crate) fn new(name: &[u8], value: &[u8]) -> io::Result<Self> {
        Ok(Self { name_bytes: name.len(), text: CString::new([name, b"=", value].concat())? })
    }

    pub(crate) fn name(&self) -> &[u8] {
        &self.text.as_bytes()[..self.name_bytes]
    }
}
