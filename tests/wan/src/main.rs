//! Two sites with a link between them, for people: enter them with `nsenter --net=/run/netns/NAME`.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};
use wan_tests::control::{Request, ask, serve};
use wan_tests::{Network, Shape};

#[derive(Debug, Parser)]
#[command(about = "A wide-area link between two network namespaces, in user space")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Makes two sites and carries packets between them until it is killed.
    Up {
        /// Where to listen for requests.
        #[arg(long)]
        control: PathBuf,
        #[arg(long, default_value_t = 1)]
        seed: u64,
        #[command(flatten)]
        shape: ShapeArgs,
    },
    /// Changes the link, both directions.
    Set {
        #[arg(long)]
        control: PathBuf,
        #[command(flatten)]
        shape: ShapeArgs,
    },
    /// Cuts the link.
    Cut {
        #[arg(long)]
        control: PathBuf,
    },
    /// Mends it.
    Mend {
        #[arg(long)]
        control: PathBuf,
    },
    /// Prints how the link is, and what it has carried.
    Look {
        #[arg(long)]
        control: PathBuf,
    },
}

#[derive(Debug, Args)]
struct ShapeArgs {
    /// One way, in microseconds.
    #[arg(long, default_value_t = 0)]
    delay_micros: u64,
    #[arg(long, default_value_t = 0)]
    jitter_micros: u64,
    /// Between 0 and 1.
    #[arg(long, default_value_t = 0.0)]
    loss: f64,
    #[arg(long, default_value_t = 0.0)]
    reorder: f64,
    #[arg(long, default_value_t = 1_000)]
    reorder_micros: u64,
    #[arg(long, default_value_t = 0.0)]
    damage: f64,
    /// Bits of a second.
    #[arg(long)]
    rate: Option<u64>,
    #[arg(long, default_value_t = 4 << 20)]
    queue_bytes: u64,
}

impl ShapeArgs {
    fn shape(&self) -> Shape {
        Shape {
            delay_micros: self.delay_micros,
            jitter_micros: self.jitter_micros,
            loss: self.loss,
            reorder: self.reorder,
            reorder_micros: self.reorder_micros,
            damage: self.damage,
            rate: self.rate,
            queue_bytes: self.queue_bytes,
            cut: false,
        }
    }
}

fn main() -> Result<()> {
    let (control, request) = match Cli::parse().command {
        Command::Up { control, seed, shape } => return up(&control, seed, shape.shape()),
        Command::Set { control, shape } => (control, Request::Shape(shape.shape())),
        Command::Cut { control } => (control, Request::Cut),
        Command::Mend { control } => (control, Request::Mend),
        Command::Look { control } => (control, Request::Look),
    };
    println!("{}", serde_json::to_string_pretty(&ask(&control, &request)?)?);
    Ok(())
}

fn up(control: &std::path::Path, seed: u64, shape: Shape) -> Result<()> {
    let network = Network::new()?.context("this needs root and /dev/net/tun")?;
    let (first, second) = (network.site("a")?, network.site("b")?);
    let link = Arc::new(network.join(&first, &second, shape, seed)?);
    for site in [&first, &second] {
        println!("{} {} /run/netns/{}", site.name(), site.address(), site.namespace());
    }
    let _ = std::fs::remove_file(control);
    let listener = UnixListener::bind(control).with_context(|| format!("{} is in use", control.display()))?;
    serve(&listener, &link)
}
