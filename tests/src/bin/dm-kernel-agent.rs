//! Does in a guest what the host's side of `tests/tests/kernel` asks: runs programs, and operations on block devices
//! without the page cache. Not a test, and of no use outside of one.
//!
//! `dm-kernel-agent PORT`: each line that comes on the port is a request in JSON, and has one line as its answer.
//! `{"run": [PROGRAM, ARGUMENT...]}` has `[STATUS, STDOUT, STDERR]`; `{"read": PATH}` has a file's text;
//! `{"io": [[DEVICE, OPERATION]...]}` has what became of each operation (see `dm_tests::operations`); `{"close": true}`
//! closes the devices that operations opened. All else ends the agent.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::process::{Command, ExitCode};

use dm_tests::operations::{Operation, Outcome, SECTOR, digest, fill};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde_json::{Value, json};

/// Largest operation, bytes.
const MOST: usize = 1 << 20;
/// O_DIRECT wants memory at a multiple of the block size; a page is one of every block size that there is.
const PAGE: usize = 4096;

struct Agent {
    devices: HashMap<String, rustix::fd::OwnedFd>,
    memory: Vec<u8>,
}

fn main() -> ExitCode {
    let Some(port) = std::env::args().nth(1) else {
        eprintln!("dm-kernel-agent: needs the port to listen on");
        return ExitCode::FAILURE;
    };
    match serve(&port) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dm-kernel-agent: {port}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(port: &str) -> io::Result<()> {
    let port = File::options().read(true).write(true).open(port)?;
    let mut answers = port.try_clone()?;
    let mut agent = Agent { devices: HashMap::new(), memory: vec![0; MOST + PAGE] };
    for line in BufReader::new(port).lines() {
        let request: Value = serde_json::from_str(&line?)?;
        if request.get("end").is_some() {
            break;
        }
        let answer = agent.answer(&request)?;
        answers.write_all(format!("{answer}\n").as_bytes())?;
    }
    Ok(())
}

fn malformed(request: &Value) -> io::Error {
    io::Error::other(format!("not a request: {request}"))
}

impl Agent {
    fn answer(&mut self, request: &Value) -> io::Result<Value> {
        if let Some(words) = request["run"].as_array() {
            let words: Option<Vec<&str>> = words.iter().map(Value::as_str).collect();
            return run(&words.ok_or_else(|| malformed(request))?);
        }
        if let Some(path) = request["read"].as_str() {
            let text = std::fs::read_to_string(path);
            return Ok(json!(text.unwrap_or_default()));
        }
        if let Some(operations) = request["io"].as_array() {
            let outcomes = operations.iter().map(|pair| {
                let (device, operation) = (pair[0].as_str(), pair[1].as_str().map(str::parse));
                let (Some(device), Some(Ok(operation))) = (device, operation) else { return Err(malformed(pair)) };
                Ok(self.outcome(device, operation).to_string())
            });
            return Ok(json!(outcomes.collect::<io::Result<Vec<String>>>()?));
        }
        if request.get("close").is_some() {
            self.devices.clear();
            return Ok(Value::Null);
        }
        Err(malformed(request))
    }

    fn outcome(&mut self, device: &str, operation: Operation) -> Outcome {
        match self.carry_out(device, operation) {
            Ok(digest) => Outcome::Done(digest),
            Err(Errno::IO) => Outcome::Failed("EIO".into()),
            Err(Errno::OPNOTSUPP) => Outcome::Failed("EOPNOTSUPP".into()),
            Err(errno) => Outcome::Failed(format!("errno {}", errno.raw_os_error())),
        }
    }

    fn carry_out(&mut self, device: &str, operation: Operation) -> Result<Option<u64>, Errno> {
        if !self.devices.contains_key(device) {
            let fd = rustix::fs::open(device, OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty())?;
            self.devices.insert(device.to_owned(), fd);
        }
        let fd = &self.devices[device];
        let begin = self.memory.as_ptr().align_offset(PAGE);
        let whole = |done: usize, len: usize| if done == len { Ok(()) } else { Err(Errno::MSGSIZE) };
        match operation {
            Operation::Read(at, len) => {
                let data = &mut self.memory[begin..][..len as usize * SECTOR];
                let done = rustix::io::pread(fd, &mut *data, at * SECTOR as u64)?;
                whole(done, data.len())?;
                Ok(Some(digest(data)))
            }
            Operation::Write(at, len, seed) => {
                let data = &mut self.memory[begin..][..len as usize * SECTOR];
                fill(seed, data);
                let done = rustix::io::pwrite(fd, data, at * SECTOR as u64)?;
                whole(done, data.len()).map(|()| None)
            }
            Operation::Flush => rustix::fs::fsync(fd).map(|()| None),
            Operation::Discard(at, len) => ranged::<BLKDISCARD>(fd, at, len).map(|()| None),
            Operation::WriteZeroes(at, len) => ranged::<BLKZEROOUT>(fd, at, len).map(|()| None),
        }
    }
}

/// `_IO(0x12, 119)` and `_IO(0x12, 127)` of linux/fs.h.
const BLKDISCARD: rustix::ioctl::Opcode = rustix::ioctl::opcode::none(0x12, 119);
const BLKZEROOUT: rustix::ioctl::Opcode = rustix::ioctl::opcode::none(0x12, 127);

fn ranged<const OPCODE: rustix::ioctl::Opcode>(fd: impl AsFd, at: u64, len: u32) -> Result<(), Errno> {
    let range = [at * SECTOR as u64, u64::from(len) * SECTOR as u64];
    // SAFETY: both requests read an array of two u64, bytes from the device's begin and bytes, and write nothing to it.
    unsafe { rustix::ioctl::ioctl(fd, rustix::ioctl::Setter::<OPCODE, [u64; 2]>::new(range)) }
}

fn run(words: &[&str]) -> io::Result<Value> {
    let (program, args) = words.split_first().ok_or_else(|| io::Error::other("no program"))?;
    // There is no udev here to make nodes.
    let output = Command::new(program).args(args).env("DM_DISABLE_UDEV", "1").output();
    let output = output.map_err(|error| io::Error::other(format!("{program}: {error}")))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(json!([output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr)]))
}
