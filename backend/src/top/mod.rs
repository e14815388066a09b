//! What a running process does, for people: `top` shows it live, `stats` prints what was counted so far.
//!
//! Numbers come over the control socket as [`crate::stats::Snapshot`]s; what happens now is the difference of two of them
//! (`rates`). `view::render` makes a picture of a `state::State` and of nothing else.

mod grid;
mod live;
mod map;
mod once;
mod print;
mod rates;
mod source;
mod state;
#[cfg(test)]
mod tests;
mod units;
mod view;

use std::io::{self, IsTerminal};
use std::path::Path;
use std::time::Duration;

use crate::control::schema::Which;
use crate::stats::Snapshot;
use source::Source;
use state::State;

/// `vhost-user-dm top`.
///
/// # Errors
/// A message for people: no socket is named, `once` and it does not answer, or the terminal fails.
pub fn top(control_path: Option<&Path>, interval: Duration, once: bool, names: Vec<String>) -> Result<(), String> {
    let source = Source::new(control_path).map_err(|error| error.to_string())?;
    let socket = source.path().display().to_string();
    let state = State { socket, interval, once, colour: once::Means::of_output().colour, ..State::default() };
    if once {
        return once::print(source, &names, state);
    }
    if !io::stdout().is_terminal() {
        return Err("standard output is no terminal; --once prints one picture as text".into());
    }
    live::run(source, names, state)
}

/// How `stats` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Tables for people.
    Human,
    /// As the control socket gives it.
    Json,
    /// For scrapers: see [`crate::stats::openmetrics`].
    OpenMetrics,
}

/// `vhost-user-dm stats`.
///
/// # Errors
/// A message for people: no socket is named, it does not answer, or there is no such device.
pub fn stats(control_path: Option<&Path>, form: Form, segments: bool, names: &[String]) -> Result<(), String> {
    let mut source = Source::new(control_path).map_err(|error| error.to_string())?;
    let mut snapshots: Vec<Snapshot> = Vec::new();
    if names.is_empty() {
        snapshots = source.stats(None, segments).map_err(|error| error.to_string())?;
    }
    for name in names {
        let which = Which { name: source::mangled(name).or_else(|| Some(name.clone())), ..Which::default() };
        let found = source.stats(Some(which), segments);
        snapshots.extend(found.map_err(|error| format!("{name}: {error}"))?);
    }
    let text = match form {
        Form::Human => print::human(&snapshots),
        Form::Json => serde_json::to_string(&snapshots).map_err(|error| error.to_string())? + "\n",
        Form::OpenMetrics => crate::stats::openmetrics(&snapshots),
    };
    once::write(&text)
}
