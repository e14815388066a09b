//! What starts a virtual machine with a disk: commands of a shell, and a domain's part for libvirt.

use std::path::Path;

use super::svg::escaped;

/// Memory of the example machine.
const MEMORY: &str = "1G";

/// The command that serves a table, on a socket, with further flags.
pub(super) fn serve(table: &Path, socket: &Path, more: &[String]) -> String {
    let mut words = vec![
        "vhost-user-dm".to_owned(),
        format!("--socket-path={}", socket.display()),
        format!("--table={}", table.display()),
    ];
    words.extend_from_slice(more);
    joined(&words)
}

/// QEMU: README.md says why the memory is shared.
pub(super) fn qemu(socket: &Path) -> String {
    // QEMU's own quoting within an option.
    let socket = socket.display().to_string().replace(',', ",,");
    let lines = [
        "qemu-system-x86_64 -accel kvm -cpu host -smp 2".to_owned() + &format!(" -m {MEMORY} -nographic"),
        format!("-object memory-backend-memfd,id=mem,size={MEMORY},share=on -numa node,memdev=mem"),
        format!("-chardev {}", quoted(&format!("socket,id=disk,path={socket},reconnect=1"))),
        "-device vhost-user-blk-pci,chardev=disk".to_owned(),
    ];
    lines.join(" \\\n    ")
}

/// cloud-hypervisor. A path with a comma is in quotation marks of its own.
pub(super) fn cloud_hypervisor(socket: &Path) -> String {
    let path = socket.display().to_string();
    let path = if path.contains(',') { format!("\"{path}\"") } else { path };
    let disk = format!("vhost_user=true,socket={path},num_queues=2,queue_size=256");
    format!(
        "cloud-hypervisor --cpus boot=2 --memory size={MEMORY},shared=on --firmware CLOUDHV.fd \\\n    --disk {}",
        quoted(&disk)
    )
}

/// libvirt: what a domain needs besides what it has.
pub(super) fn libvirt(socket: &Path) -> String {
    let absolute = std::path::absolute(socket).unwrap_or_else(|_| socket.to_owned());
    let path = escaped(&absolute.display().to_string());
    format!(
        "<domain type='kvm'>
  <memoryBacking>
    <source type='memfd'/>
    <access mode='shared'/>
  </memoryBacking>
  <devices>
    <disk type='vhostuser' device='disk'>
      <driver name='qemu' type='raw'/>
      <source type='unix' path='{path}'>
        <reconnect enabled='yes' timeout='1'/>
      </source>
      <target dev='vda' bus='virtio'/>
    </disk>
  </devices>
</domain>"
    )
}

fn joined(words: &[String]) -> String {
    words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
}

/// A word of a shell, in quotation marks where it needs them. A path holds no NUL, which alone could not be quoted.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_=,./:@%+".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    shlex::try_quote(word).map_or_else(|_| word.to_owned(), |word| word.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_paths_are_quoted() {
        let socket = Path::new("/run/my vm's/a,b.sock");
        assert_eq!(
            shlex::split(&serve(Path::new("a b.table"), socket, &["--device=x y".into()])).unwrap(),
            ["vhost-user-dm", "--socket-path=/run/my vm's/a,b.sock", "--table=a b.table", "--device=x y"]
        );
        let words = shlex::split(&qemu(socket).replace("\\\n", " ")).unwrap();
        assert!(words.contains(&"socket,id=disk,path=/run/my vm's/a,,b.sock,reconnect=1".to_owned()), "{words:?}");
        let words = shlex::split(&cloud_hypervisor(socket).replace("\\\n", " ")).unwrap();
        assert!(words.last().unwrap().contains("socket=\"/run/my vm's/a,b.sock\","), "{words:?}");
        assert!(libvirt(socket).contains("path='/run/my vm&apos;s/a,b.sock'"));
    }

    /// README.md has the same command.
    #[test]
    fn qemu_is_started_as_readme_says() {
        let readme = include_str!("../../../README.md");
        for line in qemu(Path::new("disk.sock")).lines() {
            assert!(readme.contains(line.trim_end_matches(" \\").trim()), "README.md lacks {line}");
        }
    }
}
