//! From a method's name to the verb.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::{RawValue, to_raw_value};

use super::connection::Client;
use super::schema::{
    Create, Info, Load, Message, Query, Remove, Rename, Resume, StatsQuery, Suspend, Version, Wait, Which,
};
use super::wire::{Fault, INTERNAL_ERROR, INVALID_PARAMS, METHOD_NOT_FOUND};
use crate::mapper::{DmError, Mapper, Verb};

/// Version of the kernel's device-mapper interface whose behaviour ours is.
const DRIVER: &str = "4.48.0";

/// Of parameters that are refused, in characters.
const LONGEST_REASON: usize = 500;

/// All methods, as they are listed for one who asks for another.
pub(super) const METHODS: [&str; 17] = [
    "create", "remove", "rename", "load", "clear", "suspend", "resume", "message", "info", "list", "table", "status",
    "deps", "targets", "wait", "stats", "version",
];

/// What does the methods.
pub(super) trait Handler: Send + Sync + 'static {
    fn call(&self, method: &str, params: Option<&RawValue>, client: &Client<'_>) -> Result<Box<RawValue>, Fault>;
}

/// Parameters of a method that has none.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

impl Handler for Mapper {
    fn call(&self, method: &str, params: Option<&RawValue>, client: &Client<'_>) -> Result<Box<RawValue>, Fault> {
        match method {
            "create" => run(params, |new: Create| self.create(&new)),
            "remove" => run(params, |remove: Remove| self.remove(&remove, client)),
            "rename" => run(params, |rename: Rename| self.rename(&rename, client)),
            "load" => run(params, |load: Load| self.load(&load, client)),
            "clear" => run(params, |which: Which| self.clear(&which, client)),
            "suspend" => run(params, |suspend: Suspend| self.suspend(&suspend, client)),
            "resume" => run(params, |resume: Resume| self.resume(&resume, client)),
            "message" => run(params, |message: Message| self.message(&message)),
            "info" => run(params, |which: Which| self.info(&which)),
            "list" => run(params, |_: Nothing| Ok(self.list())),
            "table" => run(params, |query: Query| self.table(&query)),
            "status" => run(params, |query: Query| self.status(&query)),
            "deps" => run(params, |query: Query| self.deps(&query)),
            "targets" => run(params, |_: Nothing| Ok(self.targets())),
            "wait" => run(params, |which: Wait| wait(self, &which, client)),
            "stats" => run(params, |query: StatsQuery| self.stats(&query)),
            "version" => run(params, |_: Nothing| Ok(version())),
            _ => {
                let shown: String = method.chars().take(32).collect();
                let have = METHODS.join(", ");
                Err(Fault::new(METHOD_NOT_FOUND, format!("no method {shown:?}; there are {have}")))
            }
        }
    }
}

fn version() -> Version {
    Version { program: env!("CARGO_PKG_VERSION").to_owned(), driver: DRIVER.to_owned() }
}

fn run<P, R>(params: Option<&RawValue>, verb: impl FnOnce(P) -> Verb<R>) -> Result<Box<RawValue>, Fault>
where
    P: DeserializeOwned,
    R: Serialize,
{
    let params = params.map_or("{}", RawValue::get);
    // The reason may hold what was sent, of any length.
    let wrong = |e: serde_json::Error| format!("params: {e}").chars().take(LONGEST_REASON).collect::<String>();
    let params = serde_json::from_str(params).map_err(|e| Fault::new(INVALID_PARAMS, wrong(e)))?;
    let result = verb(params)?;
    to_raw_value(&result).map_err(|e| Fault::new(INTERNAL_ERROR, format!("the answer is no JSON: {e}")))
}

fn wait(mapper: &Mapper, which: &Wait, client: &Client<'_>) -> Verb<Info> {
    let waiter = mapper.wait(which)?;
    if !client.connection.wait_for(&waiter.ready) {
        return Err(DmError::new(libc::EINTR));
    }
    mapper.info(&which.which)
}
