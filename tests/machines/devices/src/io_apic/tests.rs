use super::*;
use crate::workbench::Workbench;

struct Machine {
    host: Workbench,
    io_apic: IoApic,
}

fn machine() -> Machine {
    Machine { host: Workbench::default(), io_apic: IoApic::new(1) }
}

impl Machine {
    fn bus(&mut self) -> (Bus<'_>, &mut IoApic) {
        (Bus { host: &mut self.host, unit: None }, &mut self.io_apic)
    }

    fn set_entry(&mut self, pin: u32, entry: u64) {
        let (mut bus, io_apic) = self.bus();
        for (half, value) in [(1, (entry >> 32) as u32), (0, entry as u32)] {
            io_apic.write(&mut bus, 0, 0x10 + 2 * pin + half);
            io_apic.write(&mut bus, 0x10, value);
        }
    }

    fn entry(&mut self, pin: u32) -> u32 {
        let (mut bus, io_apic) = self.bus();
        io_apic.write(&mut bus, 0, 0x10 + 2 * pin);
        io_apic.read(0x10)
    }

    fn line(&mut self, line: u8, up: bool) {
        let (mut bus, io_apic) = self.bus();
        io_apic.set_line(&mut bus, line, up);
    }

    fn end(&mut self, vector: u8) {
        let (mut bus, io_apic) = self.bus();
        io_apic.end_of_interrupt(&mut bus, vector);
    }

    fn vectors(&mut self) -> Vec<u8> {
        self.host.delivered.drain(..).map(|interrupt| interrupt.vector).collect()
    }
}

#[test]
fn an_edge_is_sent_once_and_not_while_masked() {
    let mut machine = machine();
    machine.set_entry(3, MASKED | 0x41);
    machine.line(3, true);
    machine.line(3, false);
    machine.set_entry(3, 0x41);
    assert!(machine.vectors().is_empty());
    machine.line(3, true);
    machine.line(3, true);
    assert_eq!(machine.vectors(), [0x41]);
    machine.line(3, false);
    machine.line(3, true);
    assert_eq!(machine.vectors(), [0x41]);
}

#[test]
fn a_level_is_sent_again_at_the_end_of_the_interrupt_while_the_line_is_up() {
    let mut machine = machine();
    machine.set_entry(19, LEVEL | 0x51);
    machine.line(19, true);
    assert_eq!(machine.vectors(), [0x51]);
    assert_ne!(u64::from(machine.entry(19)) & REMOTE_IRR, 0);
    machine.set_entry(19, LEVEL | MASKED | 0x51);
    machine.set_entry(19, LEVEL | 0x51);
    assert!(machine.vectors().is_empty(), "it is in service still");
    machine.end(0x52);
    assert!(machine.vectors().is_empty(), "another's end");
    machine.end(0x51);
    assert_eq!(machine.vectors(), [0x51]);
    machine.line(19, false);
    machine.end(0x51);
    assert!(machine.vectors().is_empty());
    assert_eq!(u64::from(machine.entry(19)) & REMOTE_IRR, 0);
}

#[test]
fn the_eoi_register_and_a_change_to_edge_end_it_too() {
    let mut machine = machine();
    machine.set_entry(19, LEVEL | 0x51);
    machine.line(19, true);
    let (mut bus, io_apic) = machine.bus();
    io_apic.write(&mut bus, 0x40, 0x51);
    assert_eq!(machine.vectors(), [0x51, 0x51]);
    machine.set_entry(19, 0x51);
    assert_eq!(u64::from(machine.entry(19)) & REMOTE_IRR, 0);
}

#[test]
fn the_timers_line_is_pin_2_and_external_interrupts_ask_the_8259s() {
    let mut machine = machine();
    machine.set_entry(2, u64::from(EXT_INT) << 8 | 0x33);
    machine.line(0, true);
    assert_eq!(machine.vectors(), [8]);
    machine.line(24, true);
    assert!(machine.vectors().is_empty(), "there is no such pin");
}
