//! The boot processor is lost: QEMU raises a machine check on it while it runs the hypervisor.

use nexit_tests::line::Line;
use nexit_tests::{Folder, Payload};

#[test]
fn the_others_go_on_and_the_operator_is_answered_when_the_boot_processor_is_lost_on_amd_v() {
    // It hangs with interrupts off on CPU 1, and makes no exit by itself.
    let guest = Payload { cpus: "[1]", command_line: "hang", ..Payload::new("ends") };
    let uart = "isa-serial,chardev=line,index=0";
    let folder = Folder::new("lost-processor");
    let (mut machine, mut line) = Line::alone(&folder, &guest.toml(), uart, &[]);
    line.hear("payload: ends by hang");
    // Uncorrected, processor context corrupt.
    machine.monitor("mce 0 0 0xb200000000000000 0x4 0 0");
    line.hear("error: the hypervisor itself raised exception 18");
    line.hear("halted");
    line.keys("\u{1}m");
    line.hear("nexit> ");
    line.keys("stop ends\r");
    line.hear("guest ends: stopped after");
}
