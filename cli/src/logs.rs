//! `atoll logs`.

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use futures::StreamExt as _;
use serde_json::Value;
use std::io::Write as _;

use crate::client::segment;
use crate::output::end_if_nobody_reads;
use crate::settings::Connection;

#[derive(Debug, Args)]
pub(crate) struct LogsArguments {
    #[arg(value_name = "RUN_OR_EXECUTION")]
    of: String,
    /// Go on until it has ended.
    #[arg(long, short)]
    follow: bool,
    #[arg(long)]
    stream: Option<Stream>,
    /// Print one JSON document for each line.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Stream {
    Stdout,
    Stderr,
}

pub(crate) async fn logs(connection: &Connection, arguments: &LogsArguments) -> anyhow::Result<()> {
    let client = connection.client()?;
    let noun = if arguments.of.starts_with("exec_") { "executions" } else { "runs" };
    let stream = match arguments.stream {
        Some(Stream::Stdout) => "&stream=stdout",
        Some(Stream::Stderr) => "&stream=stderr",
        None => "",
    };
    let path = format!("/{noun}/{}/logs?follow={}{stream}", segment(&arguments.of), arguments.follow);
    let mut chunks = client.stream(&path).await?.bytes_stream();
    let mut pending: Vec<u8> = Vec::new();
    let mut output = std::io::stdout().lock();
    while let Some(chunk) = chunks.next().await {
        pending.extend_from_slice(&chunk.context("the logs broke off")?);
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            print_line(&mut output, &line, arguments.json)?;
        }
        end_if_nobody_reads(output.flush());
    }
    Ok(())
}

fn print_line(output: &mut impl std::io::Write, line: &[u8], json: bool) -> anyhow::Result<()> {
    if json {
        end_if_nobody_reads(output.write_all(line));
        return Ok(());
    }
    let document: Value = serde_json::from_slice(line).context("a line of the logs")?;
    if let Some(error) = document["error"]["message"].as_str() {
        eprintln!("{error}");
        return Ok(());
    }
    end_if_nobody_reads(writeln!(output, "{}", document["line"].as_str().unwrap_or_default()));
    Ok(())
}
