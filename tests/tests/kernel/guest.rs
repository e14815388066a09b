//! The kernel's side: a virtual machine whose kernel maps partitions of one disk, and an agent in it.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use dm_tests::control::Output;
use dm_tests::operations::{Operation, SECTOR};
use serde_json::{Value, json};

use crate::host::{PATIENCE, Scratch, run, top};
use crate::sides::{COMPONENTS, Request, Side};
use crate::vm::{Setup, Vm};

/// Where a component lies on the guest's disk: each on a border that suits every block size.
fn begin(component: usize) -> u64 {
    2048 + COMPONENTS[..component].iter().map(|(_, sectors)| sectors.next_multiple_of(2048)).sum::<u64>()
}

/// A guest that waits for what to do.
pub struct Kernel {
    vm: Option<Vm>,
    stream: BufReader<UnixStream>,
    disk: File,
    /// What the kernel calls the components, "254:1".
    numbers: Vec<String>,
    targets: String,
    _scratch: Box<Scratch>,
}

impl Kernel {
    pub fn boot() -> Kernel {
        let scratch = Box::new(Scratch::new());
        let image = scratch.path("components");
        let disk = OpenOptions::new().read(true).write(true).create_new(true).open(&image).expect("create the disk");
        disk.set_len(begin(COMPONENTS.len()) * SECTOR as u64).expect("size the disk");
        let socket = scratch.socket("agent");
        let listener = UnixListener::bind(&socket).expect("listen for the agent");
        // A machine that is gone without a word has nothing on its disk that somebody needs: no flush to the host's.
        let vm = Setup::new(&scratch)
            .arg("--cpus=1")
            .arg("-drive")
            .arg(format!("if=none,id=disk,format=raw,cache=unsafe,discard=unmap,file={}", image.display()))
            .arg("-device")
            .arg("virtio-blk-pci,drive=disk,serial=components")
            .arg("-chardev")
            .arg(format!("socket,id=agent,path={}", socket.display()))
            .arg("-device")
            .arg("virtio-serial-pci")
            .arg("-device")
            .arg("virtserialport,chardev=agent,name=dm-kernel-agent")
            .run_parts("kernel", &["test.cpio", "dm.cpio"], &[agent(&scratch)]);
        let (stream, _) = listener.accept().expect("QEMU connects to the agent's socket");
        stream.set_read_timeout(Some(PATIENCE)).expect("set a time-out");
        let numbers = Vec::new();
        let stream = BufReader::new(stream);
        let mut kernel = Kernel { vm: Some(vm), stream, disk, numbers, targets: String::new(), _scratch: scratch };
        kernel.make_partitions();
        kernel.targets = kernel.dmsetup(&["targets"]).stdout;
        kernel
    }

    /// As QEMU and the scripts of this repository name things, /dev/vda is the guest's only disk.
    fn make_partitions(&mut self) {
        for (index, (_, sectors)) in COMPONENTS.iter().enumerate() {
            let (number, at, sectors) = (index + 1, begin(index), sectors);
            let words = ["addpart", "/dev/vda", &number.to_string(), &at.to_string(), &sectors.to_string()];
            let output = self.run(&words);
            assert_eq!((output.code, output.stderr.as_str()), (0, ""), "addpart in the guest");
            let number = self.ask(&json!({"read": format!("/sys/class/block/vda{number}/dev")}));
            self.numbers.push(number.as_str().expect("a number").trim().to_owned());
        }
    }

    fn ask(&mut self, request: &Value) -> Value {
        self.stream.get_mut().write_all(format!("{request}\n").as_bytes()).expect("ask the agent");
        let mut line = String::new();
        let begun = Instant::now();
        let read = self.stream.read_line(&mut line);
        let waited = begun.elapsed();
        match read {
            Ok(read) if read > 0 => serde_json::from_str(&line).expect("an answer of the agent"),
            other => panic!("the agent in the guest has no answer after {waited:?} ({other:?}) to {request}"),
        }
    }

    fn run(&mut self, words: &[&str]) -> Output {
        let answer = self.ask(&json!({ "run": words }));
        let text = |at: usize| answer[at].as_str().expect("text of the agent").to_owned();
        Output { code: answer[0].as_i64().expect("a status") as i32, stdout: text(1), stderr: text(2) }
    }

    /// The version of a target's type; None if this kernel has none of it.
    pub fn version(&self, target: &str) -> Option<[u32; 3]> {
        let line = self.targets.lines().find(|line| line.split_whitespace().next() == Some(target))?;
        let version = line.split_whitespace().nth(1)?.strip_prefix('v')?;
        let mut numbers = version.split('.').map(|number| number.parse().unwrap_or(0));
        Some(std::array::from_fn(|_| numbers.next().unwrap_or(0)))
    }

    /// The first number of the kernel's version.
    pub fn major(&mut self) -> u32 {
        let release = self.ask(&json!({"read": "/proc/sys/kernel/osrelease"}));
        let number = release.as_str().and_then(|release| release.split('.').next()?.parse().ok());
        number.unwrap_or_else(|| panic!("the guest's kernel calls itself {release}"))
    }

    /// Forgets all devices, whatever state a failed case left them in.
    pub fn clear(&mut self) {
        self.close();
        self.run(&["dmsetup", "remove_all", "--force"]);
        let deadline = Instant::now() + Duration::from_secs(180);
        while !self.dmsetup(&["ls"]).stdout.contains("No devices") {
            assert!(Instant::now() < deadline, "the guest's devices do not go");
            self.run(&["dmsetup", "remove_all", "--force"]);
        }
    }

    pub fn power_off(mut self) {
        self.close();
        self.stream.get_mut().write_all(b"{\"end\": true}\n").expect("end the agent");
        self.vm.take().expect("it runs").finish();
    }
}

/// The agent and its libraries as an archive for the initramfs.
fn agent(scratch: &Scratch) -> PathBuf {
    let (root, archive) = (scratch.path("agent-root"), scratch.path("agent.cpio"));
    let script = ". vm-images/lib.sh; mkdir -p \"$1/bin\"; strip -o \"$3\" \"$2\"; install_program \"$1\" \"$3\"; \
                  rm \"$3\"; pack \"$1\" \"$4\"";
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", script, "agent"]).arg(root).arg(env!("CARGO_BIN_EXE_dm-kernel-agent"));
    run(command.arg(scratch.path("dm-kernel-agent")).arg(&archive).current_dir(top()));
    archive
}

impl Side for Kernel {
    fn node(&self, component: usize) -> String {
        format!("/dev/vda{}", component + 1)
    }

    fn shown(&self, component: usize) -> String {
        self.numbers[component].clone()
    }

    fn dmsetup(&mut self, args: &[&str]) -> Output {
        self.run(&[&["dmsetup"], args].concat())
    }

    fn io(&mut self, requests: &[Request]) -> Vec<String> {
        let pairs = requests.iter().map(|(device, operation): &(String, Operation)| {
            json!([format!("/dev/mapper/{device}"), operation.to_string()])
        });
        let answer = self.ask(&json!({ "io": pairs.collect::<Vec<_>>() }));
        let outcomes = answer.as_array().expect("outcomes of the agent");
        outcomes.iter().map(|outcome| outcome.as_str().expect("an outcome").to_owned()).collect()
    }

    fn close(&mut self) {
        self.ask(&json!({"close": true}));
    }

    fn bytes(&mut self, component: usize) -> Vec<u8> {
        let mut bytes = vec![0; COMPONENTS[component].1 as usize * SECTOR];
        self.disk.read_exact_at(&mut bytes, begin(component) * SECTOR as u64).expect("read the guest's disk");
        bytes
    }

    fn place(&mut self, component: usize, bytes: &[u8]) {
        self.disk.write_all_at(bytes, begin(component) * SECTOR as u64).expect("write the guest's disk");
    }
}
