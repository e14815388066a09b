//! The other end of the control socket, for `dmsetup`, `top` and tests.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::VARIABLE;
use super::schema::Waiting;
use super::wire::Fault;
use crate::mapper::DmError;

/// A connection to the control socket of a process. Dropped while a verb is done, it takes the verb back.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
    path: PathBuf,
    last: u64,
}

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No socket is named.
    #[error("which process? Give its control socket by --control-path=PATH or by the variable {VARIABLE}")]
    Nowhere,
    /// Nobody to talk to.
    #[error("cannot connect to the control socket {path}: {source}; is a vhost-user-dm with --control-path={path} running?", path = .path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The connection broke, or what came is not of the protocol.
    #[error("the control socket {path}: {why}", path = .path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The verb was refused.
    #[error(transparent)]
    Refused(#[from] DmError),
    /// The request was.
    #[error("the process at the control socket refused the request: {message} ({code})")]
    Request {
        /// See `control.schema.json`.
        code: i64,
        /// For people.
        message: String,
    },
}

#[derive(Serialize)]
struct Call<'a, P> {
    jsonrpc: &'static str,
    method: &'a str,
    params: &'a P,
    id: u64,
}

/// Whatever the server sends.
#[derive(Deserialize)]
struct Incoming<'a> {
    #[serde(default)]
    method: Option<String>,
    #[serde(borrow, default)]
    params: Option<&'a RawValue>,
    #[serde(borrow, default)]
    result: Option<&'a RawValue>,
    #[serde(default)]
    error: Option<Fault>,
    #[serde(default)]
    id: Option<u64>,
}

impl Client {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// [`ClientError::Connect`].
    pub fn connect(path: &Path) -> Result<Client, ClientError> {
        let connected = UnixStream::connect(path);
        let stream = connected.map_err(|source| ClientError::Connect { path: path.to_owned(), source })?;
        Ok(Client { stream: BufReader::new(stream), path: path.to_owned(), last: 0 })
    }

    /// Calls a method of [`super::schema`] and waits for its result, as long as that takes.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn call<T: DeserializeOwned>(&mut self, method: &str, params: &impl Serialize) -> Result<T, ClientError> {
        self.call_patiently(method, params, &mut |_| {})
    }

    /// As [`Client::call`]; `told` is what the verb waits for, about every second.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn call_patiently<T: DeserializeOwned>(
        &mut self,
        method: &str,
        params: &impl Serialize,
        told: &mut dyn FnMut(&Waiting),
    ) -> Result<T, ClientError> {
        self.last += 1;
        let call = Call { jsonrpc: "2.0", method, params, id: self.last };
        let mut line = serde_json::to_vec(&call).map_err(|error| self.broken(error))?;
        line.push(b'\n');
        // One who was refused as a client reads why even if it could not write.
        let written = self.stream.get_mut().write_all(&line);
        loop {
            line.clear();
            let read = self.stream.read_until(b'\n', &mut line);
            if !matches!(read, Ok(1..)) || line.last() != Some(&b'\n') {
                return Err(match written.and(read) {
                    Ok(_) => self.broken("the process hung up"),
                    Err(error) => self.broken(error),
                });
            }
            let message: Incoming<'_> = serde_json::from_slice(&line).map_err(|error| self.broken(error))?;
            if message.method.as_deref() == Some("waiting") {
                let waiting = message.params.map_or("{}", RawValue::get);
                told(&serde_json::from_str(waiting).map_err(|error| self.broken(error))?);
                continue;
            }
            if let Some(fault) = message.error {
                return Err(refusal(fault));
            }
            if message.id == Some(self.last) {
                let result = message.result.map_or("null", RawValue::get);
                return serde_json::from_str(result).map_err(|error| self.broken(error));
            }
        }
    }

    fn broken(&self, why: impl ToString) -> ClientError {
        ClientError::Broken { path: self.path.clone(), why: why.to_string() }
    }
}

fn refusal(Fault { code, message, data }: Fault) -> ClientError {
    match (i32::try_from(code), data) {
        (Ok(errno @ 1..), data) => {
            let data = data.unwrap_or_default();
            ClientError::Refused(DmError { errno, kernel: data.kernel, detail: data.detail })
        }
        _ => ClientError::Request { code, message },
    }
}
