use super::*;
use crate::host::Interrupt;
use crate::workbench::Workbench;

fn machine(options: &[&str]) -> (Machine, Workbench) {
    let mut all = Options::default();
    options.iter().for_each(|option| all.take(option).unwrap());
    let (mut machine, mut host) = (Machine::new(&all, 2).unwrap(), Workbench::default());
    machine.reset(&mut host);
    (machine, host)
}

#[test]
fn a_line_goes_through_the_unit() {
    const GCMD: u32 = 0x18;
    let (mut machine, mut host) = machine(&[]);
    // Entry 0: vector 0x71 for CPU 3, level, from the I/O APIC; table of 16 entries, x2APIC mode.
    host.put(0x4000, &[3 << 32 | 0x71 << 16 | 1 << 4 | 1, 1 << 18 | 0xf0f8]);
    machine.unit_write(&mut host, 0xb8, 0x4000 | 1 << 11 | 3);
    machine.unit_write(&mut host, GCMD, 1 << 24);
    machine.unit_write(&mut host, GCMD, 1 << 25);
    // Pin 19: index 0 in remappable format, level.
    for (select, value) in [(0x37, 1 << 16), (0x36, 1 << 15 | 0x71)] {
        machine.io_apic_write(&mut host, 0, select);
        machine.io_apic_write(&mut host, 0x10, value);
    }
    machine.set_line(&mut host, 19, true);
    let sent = Interrupt { vector: 0x71, destination: 3, mode: 0, logical: false, level: true };
    assert_eq!(host.delivered, [sent]);
    machine.end_of_interrupt(&mut host, 0x71);
    assert_eq!(host.delivered, [sent, sent]);
    // In compatibility format it is refused, and that is a fault.
    machine.io_apic_write(&mut host, 0, 0x37);
    machine.io_apic_write(&mut host, 0x10, 0);
    machine.end_of_interrupt(&mut host, 0x71);
    assert_eq!((host.delivered.len(), host.says("fault 0x25 of f0:1f.0")), (2, 1));
}

#[test]
fn the_report_names_every_counter_of_every_device() {
    let (machine, _) = machine(&["nvme=4:", "nvme=9:"]);
    let report = machine.report(7);
    let lines: Vec<&str> = report.lines().collect();
    assert_eq!(lines[0], "ticks 7");
    for line in ["stale_remaps 0", "driver_errors 0", "device_4_messages 0", "device_9_resets 0"] {
        assert!(lines.contains(&line), "{report}");
    }
    let (machine, _) = self::machine(&["unit=0"]);
    assert_eq!((machine.report(0).as_str(), machine.unit_base()), ("ticks 0\n", None));
}

#[test]
fn a_disk_that_is_not_there_is_told() {
    let mut options = Options::default();
    options.take("nvme=\"4:/no/such\"").unwrap();
    let error = Machine::new(&options, 1).unwrap_err();
    assert!(error.starts_with("vtd: cannot open /no/such: "), "{error}");
}
