//! A component, from its file to its end.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use wasmtime::component::{Linker, ResourceTable};
use wasmtime::{Cache, CacheConfig, Config, Engine, Result, Store};
use wasmtime_wasi::p2::add_to_linker_sync;
use wasmtime_wasi::p2::bindings::sync::Command;
use wasmtime_wasi::{FsPerms, I32Exit, WasiCtx, WasiCtxView, WasiView};

/// What the machine's own programs end with that are stopped for what they do.
const STOPPED: u8 = 134;

/// Folders that a component may write to, and those that it may only read, by the variables that name them.
const WRITTEN: [&str; 2] = ["ATOLL_OUTPUTS", "TMPDIR"];
const READ: [&str; 2] = ["ATOLL_INPUTS", "ATOLL_ACTION"];

/// One that is compiled.
pub(crate) struct Component {
    engine: Engine,
    component: wasmtime::component::Component,
}

struct Host {
    context: WasiCtx,
    table: ResourceTable,
}

impl WasiView for Host {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.context, table: &mut self.table }
    }
}

impl Component {
    /// Takes it from the folder of what is compiled, or compiles it and leaves it there.
    ///
    /// # Errors
    /// When there is no such file, or it is no component.
    pub(crate) fn read(cache: &Path, file: &Path) -> Result<Self> {
        let mut compiled = CacheConfig::new();
        compiled.with_directory(cache);
        let mut config = Config::new();
        config.cache(Some(Cache::new(compiled)?));
        let engine = Engine::new(&config)?;
        let component = wasmtime::component::Component::from_file(&engine, file)?;
        Ok(Self { engine, component })
    }

    /// Runs it to its end; `Err(())` is what a program says that has failed.
    ///
    /// # Errors
    /// When it asks for what is not there, or is stopped for what it does.
    pub(crate) fn run(&self, network: bool, file: &OsString, arguments: &[OsString]) -> Result<Result<(), ()>> {
        let mut linker = Linker::new(&self.engine);
        add_to_linker_sync(&mut linker)?;
        let host = Host { context: context(network, file, arguments)?, table: ResourceTable::new() };
        let mut store = Store::new(&self.engine, host);
        let command = Command::instantiate(&mut store, &self.component, &linker)?;
        command.wasi_cli_run().call_run(&mut store)
    }
}

fn context(network: bool, file: &OsString, arguments: &[OsString]) -> Result<WasiCtx> {
    let mut context = WasiCtx::builder();
    context.inherit_stdout().inherit_stderr().allow_blocking_current_thread(true);
    // The guest's strings are text: what is none in a variable is not for it.
    for (name, value) in env::vars_os() {
        if let (Some(name), Some(value)) = (name.to_str(), value.to_str()) {
            context.env(name, value);
        }
    }
    for argument in [file].into_iter().chain(arguments) {
        context.arg(argument.to_string_lossy());
    }
    let work = env::current_dir()?;
    context.preopened_dir(&work, ".", FsPerms::ReadWrite)?;
    context.preopened_dir(&work, work.to_string_lossy(), FsPerms::ReadWrite)?;
    let named = |variable: &&str| env::var_os(variable).map(PathBuf::from).filter(|folder| folder.is_dir());
    for (variables, permissions) in [(WRITTEN, FsPerms::ReadWrite), (READ, FsPerms::ReadOnly)] {
        for folder in variables.iter().filter_map(named) {
            context.preopened_dir(&folder, folder.to_string_lossy(), permissions)?;
        }
    }
    if network {
        context.inherit_network().allow_ip_name_lookup(true);
    }
    Ok(context.build())
}

/// What a process ends with whose component has ended so.
pub(crate) fn ended(how: Result<Result<(), ()>>) -> ExitCode {
    match how {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(())) => ExitCode::FAILURE,
        Err(error) => match error.downcast_ref::<I32Exit>() {
            Some(exit) => ExitCode::from(u8::try_from(exit.0).unwrap_or(1)),
            None => {
                eprintln!("the component was stopped: {error:?}");
                ExitCode::from(STOPPED)
            }
        },
    }
}
