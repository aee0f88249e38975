//! What concerns the hardware that all guests share: caches, and machine checks.

use arch::machine_check::{MachineCheck, Recorded};

use super::interrupts::raised;
use super::*;

const WBINVD: &[u8] = &[0x0f, 0x09];
const WBNOINVD: &[u8] = &[0xf3, 0x0f, 0x09];

#[test]
fn the_caches_are_written_back_for_a_guest_with_a_device_and_for_no_other() {
    for (devices, written_back) in [(true, 1), (false, 0)] {
        for code in [WBINVD, WBNOINVD, &[0x0f, 0x08]] {
            let mut world = World::new(InterruptMode::Exitless);
            if !devices {
                world.vm.bus = VirtualBus::new(&world.config, &[], None, Vec::new()).unwrap();
            }
            world.execute(code, ExitReason::CacheInvalidate);
            assert_eq!(world.vcpu.state.rip, CODE + code.len() as u64, "{code:x?}");
            assert_eq!(world.machine.written_back, written_back, "{code:x?}");
        }
    }
}

#[test]
fn a_machine_check_of_another_cpu_is_no_matter_of_the_guest() {
    let mut world = World::with_idt();
    world.handle(raised(exception::MC, 0), None);
    assert_eq!((world.vcpu.injected, world.machine.log.len()), (None, 0));
}

#[test]
fn a_machine_check_ends_the_guest_that_ran_and_says_what_was_recorded() {
    let mut world = World::with_idt();
    let recorded = Recorded { bank: Some((2, 0xb2 << 56)), global: 5 };
    world.machine.machine_check = MachineCheck::Contained(recorded);
    let next = world.exit(raised(exception::MC, 0), None);
    assert_eq!(next, Next::End(Outcome::Crash));
    assert_eq!(world.vcpu.injected, None, "no guest has a handler for it");
    let said = &world.machine.log[0];
    assert!(said.contains("a machine check, bank 2 has status 0xb2"), "{said}");
}

#[test]
fn bus_locks_are_counted_and_end_nobody() {
    let mut world = World::new(InterruptMode::Exitless);
    for _ in 0..3 {
        assert_eq!(world.exit(ExitReason::BusLock, None), Next::Resume);
    }
    assert_eq!(world.cpu.counters.get(Counter::BusLock), 3);
    assert_eq!(world.vcpu.injected, None);
}
