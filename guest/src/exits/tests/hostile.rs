//! Any sequence of exits, with any registers and any bytes at RIP: the policy neither panics, nor loops,
//! nor writes a physical register that is not the guest's.

use std::collections::BTreeMap;

use arch::Width;
use arch::exit::{IoAccess, NestedPageFault, TaskSwitch, TaskSwitchSource};
use proptest::prelude::*;

use super::*;

/// Registers of the physical local APIC that a guest's values may reach.
const PHYSICAL: &[u32] = &[0x808, 0x80b, 0x80f, 0x832, 0x838, 0x83e, 0x83f];

#[derive(Clone, Debug)]
struct Step {
    kind: u8,
    gpr: [u64; 16],
    code: Vec<u8>,
    gpa: u64,
    flags: u8,
    vectoring: Option<(u8, u8)>,
}

/// Numbers of which many mean something: small ones, addresses of devices and RAM, MSRs.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..0x100_u64,
        0x800..0x840_u64,
        0xc000_0080..0xc000_0090_u64,
        0..2 * RAM,
        0xfec0_0000..0xfec0_0060_u64,
        0xfee0_0000..0xfee0_0400_u64,
        (0..0x4_0000_u64).prop_map(|offset| ECAM + offset),
        (0..0x5000_u64).prop_map(|offset| BAR - 0x800 + offset),
        Just(0x1b),
        Just(0xda0),
        Just(0xfed9_0000),
        any::<u64>(),
    ]
}

/// Bytes of instructions that the decoder knows, or any.
fn code() -> impl Strategy<Value = Vec<u8>> {
    let known = prop::sample::select(vec![
        vec![0x8b, 0x03],
        vec![0x89, 0x03],
        vec![0x48, 0x89, 0x07],
        vec![0xf3, 0xa4],
        vec![0xf3, 0x48, 0xab],
        vec![0xf3, 0x6c],
        vec![0x6e],
        vec![0xf0, 0x0f, 0xb1, 0x0b],
        vec![0x0f, 0x01, 0x1b],
        vec![0x0f, 0x01, 0x03],
        vec![0x0f, 0x00, 0xd8],
        vec![0x0f, 0x00, 0x13],
        vec![0x0f, 0x11, 0x03],
        vec![0x0f, 0xab, 0x03],
    ]);
    prop_oneof![2 => known, 1 => proptest::collection::vec(any::<u8>(), 1..16)]
}

fn step() -> impl Strategy<Value = Step> {
    let vectoring = proptest::option::weighted(0.2, (any::<u8>(), 0..6_u8));
    let gpr = proptest::collection::vec(number(), 16);
    (any::<u8>(), gpr, code(), number(), any::<u8>(), vectoring).prop_map(
        |(kind, gpr, code, gpa, flags, vectoring)| Step {
            kind,
            gpr: core::array::from_fn(|index| gpr[index]),
            code,
            gpa,
            flags,
            vectoring,
        },
    )
}

fn reason(step: &Step) -> ExitReason {
    let (gpa, flags) = (step.gpa, step.flags);
    let bit = |n: u8| flags >> n & 1 != 0;
    let vector = Vector(step.gpr[1] as u8);
    let widths = [Width::Byte, Width::Word, Width::Dword];
    match step.kind % 17 {
        0 => ExitReason::Cpuid,
        1 | 2 => ExitReason::Io(IoAccess {
            port: if bit(7) { 0xcf8 + (gpa as u16 & 7) } else { gpa as u16 },
            width: widths[usize::from(flags) % 3],
            input: bit(2),
            string: bit(3),
            repeat: bit(4),
            instruction_length: 1 + (flags >> 6),
        }),
        3 => ExitReason::ReadMsr,
        4 | 5 => ExitReason::WriteMsr,
        6 => ExitReason::DescriptorTable,
        7..=9 => ExitReason::NestedPageFault(NestedPageFault {
            gpa: Gpa::new(gpa),
            write: bit(0),
            fetch: flags % 32 == 7,
            table_walk: flags % 32 == 9,
        }),
        10 => ExitReason::Exception {
            vector: Vector([11, 13, 8, 14][usize::from(flags) % 4]),
            error_code: bit(4).then_some(u32::from(vector.0) << 3 | 2),
            qualification: 0,
        },
        11 => ExitReason::ExternalInterrupt(Some(vector)),
        12 => [ExitReason::Nmi, ExitReason::HostTimer, ExitReason::InterruptWindow]
            [usize::from(flags) % 3],
        13 => ExitReason::Halt,
        14 => ExitReason::Xsetbv,
        15 => ExitReason::TaskSwitch(TaskSwitch {
            selector: bit(6).then_some(gpa as u16),
            source: [
                TaskSwitchSource::Call,
                TaskSwitchSource::Iret,
                TaskSwitchSource::Jump,
                TaskSwitchSource::IdtGate,
            ][usize::from(flags) % 4],
        }),
        _ => ExitReason::CacheInvalidate,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn no_sequence_of_exits_panics_or_reaches_a_register_that_is_not_the_guests(
        steps in proptest::collection::vec(step(), 1..40), exiting: bool,
    ) {
        let mode = if exiting { InterruptMode::Exiting } else { InterruptMode::Exitless };
        let mut world = World::new(mode);
        world.machine.msrs = (0x800..0x840).chain([0x1b, 0x3a, 0xda0, 0x6e0]).map(|msr| (msr, 0)).collect();
        world.make_idt(IDT);
        for step in &steps {
            if !(CODE..CODE + 0x1000).contains(&world.vcpu.state.rip) {
                world.vcpu.state.rip = CODE;
            }
            world.vcpu.state.gpr = step.gpr;
            let rip = world.vcpu.state.rip.min(CODE + 0xff0);
            world.vcpu.state.rip = rip;
            world.put(rip, &step.code);
            let kinds = [
                EventKind::ExternalInterrupt,
                EventKind::Nmi,
                EventKind::HardwareException,
                EventKind::SoftwareInterrupt,
                EventKind::SoftwareException,
                EventKind::PrivilegedSoftwareException,
            ];
            let vectoring = step.vectoring.and_then(|(vector, kind)| cut_short(vector, kinds[usize::from(kind)]));
            if world.exit(reason(step), vectoring) != Next::Resume {
                break;
            }
        }
        let touched: BTreeMap<u32, u64> = world.machine.msrs.iter().filter(|(_, value)| **value != 0).map(|(msr, value)| (*msr, *value)).collect();
        prop_assert!(touched.keys().all(|msr| PHYSICAL.contains(msr)), "{touched:x?}");
        let routed = world.machine.routes.iter().filter_map(|(_, target)| *target);
        prop_assert!(routed.into_iter().all(|target| target.destination == CPU));
        prop_assert!(world.machine.ipis.is_empty() && world.machine.requests.is_empty(), "it has one CPU");
        prop_assert!(world.machine.log.len() < 60, "{:?}", world.machine.log);
    }
}
