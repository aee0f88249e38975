//! Hardware task switches against the manual's steps (SDM "Task Switching", "Exception Conditions Checked During a Task
//! Switch").

use arch::exit::{TaskSwitch, TaskSwitchSource};
use arch::register::Rflags;

use super::*;

pub(super) const GDT: u64 = 0x9000;
const OLD_TSS: u64 = 0xa000;
const NEW_TSS: u64 = 0xb000;
const LDT: u64 = 0xc000;
const STACK: u64 = 0xd000;
const GDT_LIMIT: u16 = 0x7f;

pub(super) const OLD: u16 = 0x18;
pub(super) const NEW: u16 = 0x20;
const LOCAL: u16 = 0x28;
const READ_ONLY: u16 = 0x30;
const ABSENT: u16 = 0x38;
const NEW_16: u16 = 0x40;
/// Code and data of ring 3, with that as their requested privilege.
const USER_CODE: u16 = 0x4b;
const USER_DATA: u16 = 0x53;
/// Code and data of ring 0.
const CODE_SELECTOR: u16 = 8;
const DATA_SELECTOR: u16 = 0x10;

pub(super) const BUSY: u8 = 0x8b;
const AVAILABLE: u8 = 0x89;
const NESTED_TASK: u32 = 1 << 14;

const fn descriptor(base: u64, limit: u64, access: u64, flags: u64) -> u64 {
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 15) << 48
        | flags << 52
        | (base >> 24) << 56
}

/// The state of the task in [`NEW_TSS`]: register n is n + 1 times this.
const REGISTER: u32 = 0x0101_0101;

impl World {
    /// A guest in 32-bit protected mode, whose task is [`OLD`]; that of [`NEW`] waits at 0x6100.
    pub(super) fn with_tasks() -> Self {
        let mut world = Self::new(InterruptMode::Exiting);
        let flat = |selector, access| Segment { selector, base: 0, limit: u32::MAX, access };
        let state = &mut world.vcpu.state;
        state.segments = [flat(DATA_SELECTOR, AccessRights::DATA32); 8];
        state.segments[SegmentRegister::Cs as usize] = flat(CODE_SELECTOR, AccessRights::CODE32);
        state.segments[SegmentRegister::Ldtr as usize] = Segment::NULL;
        state.segments[SegmentRegister::Tr as usize] =
            Segment { selector: OLD, base: OLD_TSS, limit: 0x67, access: AccessRights::TSS_BUSY };
        (state.cr0, state.cr3, state.cr4, state.efer) = (0x11, 0, 0, 0);
        state.gdtr = DescriptorTable { base: Gva::new(GDT), limit: GDT_LIMIT };
        state.rip = CODE;
        state.rflags = 0x246;
        state.gpr = core::array::from_fn(|index| 0x1000 + index as u64);
        for (selector, entry) in [
            (CODE_SELECTOR, descriptor(0, 0xf_ffff, 0x9a, 0xc)),
            (DATA_SELECTOR, descriptor(0, 0xf_ffff, 0x92, 0xc)),
            (OLD, descriptor(OLD_TSS, 0x67, BUSY.into(), 0)),
            (NEW, descriptor(NEW_TSS, 0x67, AVAILABLE.into(), 0)),
            (LOCAL, descriptor(LDT, 0xf, 0x82, 0)),
            (READ_ONLY, descriptor(0, 0xf_ffff, 0x90, 0xc)),
            (ABSENT, descriptor(0, 0xf_ffff, 0x12, 0xc)),
            (NEW_16, descriptor(NEW_TSS, 0x2b, 0x81, 0)),
            (USER_CODE & !3, descriptor(0, 0xf_ffff, 0xfa, 0xc)),
            (USER_DATA & !3, descriptor(0, 0xf_ffff, 0xf2, 0xc)),
        ] {
            world.put(GDT + u64::from(selector), &entry.to_le_bytes());
        }
        world.set_tss(0x20, 0x6100);
        world.set_tss(0x24, 2);
        for register in 0..8 {
            world.set_tss(0x28 + 4 * u64::from(register), REGISTER * (register + 1));
        }
        world.set_tss(0x38, STACK as u32 + 0x100);
        for at in [0x48, 0x50, 0x54, 0x58, 0x5c] {
            world.set_tss(at, DATA_SELECTOR.into());
        }
        world.set_tss(0x4c, CODE_SELECTOR.into());
        world
    }

    pub(super) fn set_tss(&mut self, at: u64, value: u32) {
        self.put(NEW_TSS + at, &value.to_le_bytes());
    }

    fn old_tss(&self, at: u64) -> u32 {
        u32::from_le_bytes(self.get(OLD_TSS + at))
    }

    fn access_byte(&self, selector: u16) -> u8 {
        let [byte] = self.get(GDT + u64::from(selector) + 5);
        byte
    }

    fn switch(&mut self, source: TaskSwitchSource, event: Option<Vectoring>) {
        self.switch_to(NEW, source, event);
    }

    fn switch_to(&mut self, selector: u16, source: TaskSwitchSource, event: Option<Vectoring>) {
        self.vcpu.length = 7;
        let selector = Some(selector);
        self.handle(ExitReason::TaskSwitch(TaskSwitch { selector, source }), event);
    }

    fn task(&self) -> u16 {
        self.vcpu.segment(SegmentRegister::Tr).selector
    }

    fn refused(&self, vector: u8, error_code: u32) {
        assert_eq!(self.vcpu.injected, Some(Event::exception(vector, Some(error_code))));
    }
}

pub(super) const fn event(
    vector: u8,
    kind: EventKind,
    error_code: Option<u32>,
) -> Option<Vectoring> {
    Some(Vectoring { vector: Vector(vector), kind, error_code })
}

const ALL: [TaskSwitchSource; 4] = [
    TaskSwitchSource::Call,
    TaskSwitchSource::Iret,
    TaskSwitchSource::Jump,
    TaskSwitchSource::IdtGate,
];

#[test]
fn a_call_saves_the_old_task_and_starts_the_new_one_nested_in_it() {
    let mut world = World::with_tasks();
    world.switch(TaskSwitchSource::Call, None);
    assert_eq!((world.old_tss(0x20), world.old_tss(0x24)), (CODE as u32 + 7, 0x246));
    assert_eq!((world.old_tss(0x28), world.old_tss(0x44)), (0x1000, 0x1007));
    assert_eq!((world.old_tss(0x4c), world.old_tss(0x5c)), (8, 0x10));
    let state = world.vcpu.state;
    assert_eq!((state.rip, state.rflags), (0x6100, 2 | u64::from(NESTED_TASK)));
    assert_eq!(state.gpr[Gpr::Rdi as usize], u64::from(REGISTER) * 8);
    assert_eq!(world.task(), NEW);
    assert_eq!(world.get::<2>(NEW_TSS), OLD.to_le_bytes(), "the link back");
    assert_eq!((world.access_byte(OLD), world.access_byte(NEW)), (BUSY, BUSY));
    assert_ne!(state.cr0 & Cr0::TS.bits(), 0);
    let code = world.vcpu.segment(SegmentRegister::Cs);
    assert_eq!((code.selector, code.limit, code.access), (8, u32::MAX, AccessRights::CODE32));
    assert_eq!(world.access_byte(CODE_SELECTOR), 0x9b, "marked as accessed");
    assert_eq!(world.vcpu.injected, None);
}

#[test]
fn a_jump_leaves_the_old_task_for_good_and_iret_goes_back_to_a_busy_one() {
    let mut world = World::with_tasks();
    world.switch(TaskSwitchSource::Jump, None);
    assert_eq!((world.access_byte(OLD), world.access_byte(NEW)), (AVAILABLE, BUSY));
    assert_eq!(world.vcpu.state.rflags as u32 & NESTED_TASK, 0);
    assert_eq!(world.get::<2>(NEW_TSS), [0; 2], "no link");

    let mut world = World::with_tasks();
    world.put(GDT + u64::from(NEW) + 5, &[BUSY]);
    world.vcpu.state.rflags |= u64::from(NESTED_TASK);
    world.switch(TaskSwitchSource::Iret, None);
    assert_eq!(world.old_tss(0x24), 0x246, "the flag goes out in what is saved");
    assert_eq!((world.access_byte(OLD), world.access_byte(NEW)), (AVAILABLE, BUSY));
    assert_eq!(world.task(), NEW);

    // Where the exit does not say to whom, the link does.
    let mut world = World::with_tasks();
    world.put(GDT + u64::from(NEW) + 5, &[BUSY]);
    world.put(OLD_TSS, &NEW.to_le_bytes());
    let by_link = TaskSwitch { selector: None, source: TaskSwitchSource::Iret };
    world.handle(ExitReason::TaskSwitch(by_link), None);
    assert_eq!((world.task(), world.old_tss(0x20)), (NEW, CODE as u32 + 1));
}

#[test]
fn a_task_gate_in_the_idt_pushes_the_error_code_on_the_new_stack() {
    let mut world = World::with_tasks();
    world.switch(TaskSwitchSource::IdtGate, event(8, EventKind::HardwareException, Some(0x1234)));
    assert_eq!(world.old_tss(0x20), CODE as u32, "it goes on where it faulted");
    assert_eq!(world.vcpu.gpr(Gpr::Rsp), STACK + 0xfc);
    assert_eq!(world.get::<4>(STACK + 0xfc), 0x1234_u32.to_le_bytes());
    assert_eq!(world.vcpu.state.rflags as u32, 2 | NESTED_TASK);
    assert_eq!(world.vcpu.injected, None, "delivered");
    for (kind, behind) in [
        (EventKind::ExternalInterrupt, 0),
        (EventKind::Nmi, 0),
        (EventKind::SoftwareInterrupt, 7),
        (EventKind::SoftwareException, 7),
    ] {
        let mut world = World::with_tasks();
        world.switch(TaskSwitchSource::IdtGate, event(0x40, kind, None));
        assert_eq!(world.old_tss(0x20), CODE as u32 + behind, "{kind:?}");
        assert_eq!((world.vcpu.gpr(Gpr::Rsp), world.vcpu.injected), (STACK + 0x100, None));
    }
}

#[test]
fn a_16_bit_task_has_a_16_bit_frame() {
    let mut world = World::with_tasks();
    world.put(NEW_TSS, &[0; 0x2c]);
    for (at, value) in
        [(0xe, 0x6100), (0x10, 2), (0x1a, 0x100), (0x22, 0x10), (0x24, 8), (0x26, 0x10)]
    {
        world.put(NEW_TSS + at, &u16::to_le_bytes(value));
    }
    let exception = event(13, EventKind::HardwareException, Some(0x55));
    world.switch_to(NEW_16, TaskSwitchSource::IdtGate, exception);
    assert_eq!((world.vcpu.state.rip, world.vcpu.gpr(Gpr::Rsp)), (0x6100, 0xfe));
    assert_eq!(world.get::<2>(0xfe), [0x55, 0]);
    assert!(world.vcpu.segment(SegmentRegister::Fs).access.unusable());
    // And back, out of a 16-bit TSS.
    world.put(GDT + u64::from(NEW_16) + 5, &[0x83]);
    world.put(GDT + u64::from(OLD) + 5, &[BUSY]);
    world.vcpu.state.rip = 0x6105;
    world.switch_to(OLD, TaskSwitchSource::Iret, None);
    assert_eq!(world.get::<2>(NEW_TSS + 0xe), 0x610c_u16.to_le_bytes());
    assert_eq!((world.task(), world.vcpu.state.rip), (OLD, CODE));
    assert_eq!(world.access_byte(NEW_16), 0x81);
}

#[test]
fn a_virtual_8086_task_has_paragraphs_for_segments() {
    let mut world = World::with_tasks();
    world.set_tss(0x24, Rflags::VM.bits() as u32 | 2);
    for (index, at) in (0x48..0x60).step_by(4).enumerate() {
        world.set_tss(at, 0x100 + index as u32);
    }
    world.switch(TaskSwitchSource::Call, None);
    let stack = world.vcpu.segment(SegmentRegister::Ss);
    assert_eq!((stack.base, stack.limit, stack.access), (0x1020, 0xffff, AccessRights(0xf3)));
    assert_eq!(world.vcpu.cpl(), 3);
    assert_eq!(world.vcpu.injected, None);
}

#[test]
fn a_task_of_ring_3_with_a_local_table() {
    let mut world = World::with_tasks();
    world.set_tss(0x60, LOCAL.into());
    world.put(LDT + 8, &descriptor(0x4000, 0xf_ffff, 0xf2, 0xc).to_le_bytes());
    world.set_tss(0x4c, USER_CODE.into());
    for at in [0x48, 0x50, 0x58, 0x5c] {
        world.set_tss(at, USER_DATA.into());
    }
    world.set_tss(0x54, 0xf);
    world.switch(TaskSwitchSource::Jump, None);
    assert_eq!(world.vcpu.injected, None);
    assert_eq!((world.vcpu.cpl(), world.vcpu.segment(SegmentRegister::Ds).base), (3, 0x4000));
    assert_eq!(world.vcpu.segment(SegmentRegister::Ldtr).base, LDT);
}

#[test]
fn before_the_switch_a_fault_is_the_old_tasks_and_nothing_has_changed() {
    let (ts, gp) = (exception::TS, exception::GP);
    for source in ALL {
        let returns = source == TaskSwitchSource::Iret;
        let wrong = if returns { ts } else { gp };
        let cases: [(u16, u64, u8, u8); 6] = [
            (GDT_LIMIT + 1, 0, 0, wrong),
            (NEW | 4, 0, 0, wrong),
            (0, 0, 0, wrong),
            (NEW, 5, if returns { AVAILABLE } else { BUSY }, wrong),
            (NEW, 5, if returns { 0x0b } else { 0x09 }, exception::NP),
            (NEW, 0, 0x66, ts),
        ];
        for (selector, at, byte, vector) in cases {
            let mut world = World::with_tasks();
            if returns {
                world.put(GDT + u64::from(NEW) + 5, &[BUSY]);
            }
            if at != 0 || byte != 0 {
                world.put(GDT + u64::from(NEW) + at, &[byte]);
            }
            let before = (world.vcpu.state, world.memory.0.clone());
            let gate = source == TaskSwitchSource::IdtGate;
            let interrupt = event(0x40, EventKind::ExternalInterrupt, None).filter(|_| gate);
            world.switch_to(selector, source, interrupt);
            world.refused(vector, u32::from(selector & !3) | u32::from(gate));
            assert_eq!((world.vcpu.state, &world.memory.0), (before.0, &before.1), "{source:?}");
        }
    }
}

#[test]
fn an_old_tss_that_cannot_hold_the_state_stops_the_switch() {
    let mut world = World::with_tasks();
    world.vcpu.state.segments[SegmentRegister::Tr as usize].limit = 0x5e;
    world.switch(TaskSwitchSource::Jump, None);
    world.refused(exception::TS, OLD.into());
    assert_eq!((world.task(), world.access_byte(OLD)), (OLD, BUSY));
}

#[test]
fn behind_the_switch_a_fault_is_the_new_tasks() {
    let (ts, np, ss) = (exception::TS, exception::NP, exception::SS);
    for (at, selector, vector) in [
        (0x60, DATA_SELECTOR, ts),
        (0x60, LOCAL | 4, ts),
        (0x4c, DATA_SELECTOR, ts),
        (0x4c, 0, ts),
        (0x4c, CODE_SELECTOR | 3, ts),
        (0x50, 0, ts),
        (0x50, READ_ONLY, ts),
        (0x50, USER_DATA, ts),
        (0x50, ABSENT, ss),
        (0x54, ABSENT, np),
        (0x54, OLD, ts),
        (0x54, GDT_LIMIT + 1, ts),
        (0x54, DATA_SELECTOR | 3, ts),
        (0x5c, ABSENT, np),
        (0x58, 0x0c, ts),
    ] {
        let mut world = World::with_tasks();
        world.set_tss(at, selector.into());
        world.switch(TaskSwitchSource::Call, None);
        world.refused(vector, u32::from(selector & !3));
        assert_eq!((world.task(), world.vcpu.state.rip), (NEW, 0x6100), "{at:#x}");
    }
    // The order: the local table, code, the stack, the others.
    let mut world = World::with_tasks();
    for (at, expected) in [(0x5c, 0x38), (0x54, 0x38), (0x50, 0x30), (0x4c, 0x10), (0x60, 0x18)] {
        let selector = expected;
        world.set_tss(at, selector);
        world.put(GDT + u64::from(NEW) + 5, &[AVAILABLE]);
        world.vcpu.state.segments[SegmentRegister::Tr as usize].selector = OLD;
        world.vcpu.state.segments[SegmentRegister::Tr as usize].base = OLD_TSS;
        world.switch(TaskSwitchSource::Call, None);
        assert_eq!(world.vcpu.injected.unwrap().error_code, Some(expected), "{at:#x}");
    }
}

#[test]
fn an_instruction_pointer_beyond_its_segment_and_a_stack_without_room_are_the_new_tasks_faults() {
    let mut world = World::with_tasks();
    world.put(GDT + 8, &descriptor(0, 0x60ff, 0x9a, 4).to_le_bytes());
    world.switch(TaskSwitchSource::Call, None);
    world.refused(exception::GP, 0);
    let mut world = World::with_tasks();
    world.put(GDT + 0x10, &descriptor(0, STACK + 0xfe, 0x92, 4).to_le_bytes());
    world.switch(TaskSwitchSource::IdtGate, event(17, EventKind::HardwareException, Some(0)));
    world.refused(exception::SS, 1);
}

#[test]
fn a_fault_in_the_delivery_of_a_fault_is_a_double_fault_and_in_that_ones_the_end() {
    let mut world = World::with_tasks();
    world.set_tss(0x54, ABSENT.into());
    world.switch(TaskSwitchSource::IdtGate, event(13, EventKind::HardwareException, Some(0)));
    world.refused(exception::DF, 0);
    let mut world = World::with_tasks();
    world.set_tss(0x54, ABSENT.into());
    let next = world.exit(
        ExitReason::TaskSwitch(TaskSwitch {
            selector: Some(NEW),
            source: TaskSwitchSource::IdtGate,
        }),
        event(8, EventKind::HardwareException, Some(0)),
    );
    assert_eq!(next, Next::End(Outcome::TripleFault));
}

#[test]
fn the_trap_bit_raises_a_debug_exception_and_local_breakpoints_end() {
    let mut world = World::with_tasks();
    world.set_tss(0x64, 1);
    world.vcpu.debug.control = 0x7ff;
    world.switch(TaskSwitchSource::Jump, None);
    assert_eq!(world.vcpu.injected, Some(Event::exception(exception::DB, None)));
    assert_eq!(world.vcpu.debug.status & 1 << 15, 1 << 15);
    assert_eq!(world.vcpu.debug.control, 0x7ff & !0x155);
}

#[test]
fn with_paging_the_new_task_has_its_own_tables() {
    const TABLES: u64 = 0xe000;
    let mut world = World::with_tasks();
    // 4-MiB pages: the first one onto itself.
    world.put(TABLES, &0x83_u32.to_le_bytes());
    world.put(TABLES + 0x800, &0x83_u32.to_le_bytes());
    (world.vcpu.state.cr3, world.vcpu.state.cr4) = (TABLES, 0x10);
    world.vcpu.state.cr0 |= Cr0::PG.bits();
    world.set_tss(0x1c, TABLES as u32 + 0x800);
    world.switch(TaskSwitchSource::Call, None);
    assert_eq!((world.vcpu.state.cr3, world.vcpu.pointers), (TABLES + 0x800, None));
}

#[test]
fn with_pae_the_four_pointers_come_with_cr3_and_wrong_ones_are_refused() {
    const POINTERS: u64 = 0xe000;
    const DIRECTORY: u64 = 0xf000;
    // Bit 1 is reserved, and so are the bits above the CPU's width, 39 here: an entry with one of them would fail.
    let pointers = [(1, false), (3, true), (1 << 38 | 1, false), (1 << 39 | 1, true)];
    for (pointer, refused) in pointers.map(|(bits, refused)| (DIRECTORY | bits, refused)) {
        let mut world = World::with_tasks();
        for at in [POINTERS, POINTERS + 0x20] {
            world.put(at, &(DIRECTORY | 1).to_le_bytes());
        }
        world.put(POINTERS + 0x38, &pointer.to_le_bytes());
        world.put(DIRECTORY, &0x83_u64.to_le_bytes());
        (world.vcpu.state.cr3, world.vcpu.state.cr4) = (POINTERS, Cr4::PAE.bits());
        world.vcpu.state.cr0 |= Cr0::PG.bits();
        world.set_tss(0x1c, POINTERS as u32 + 0x20);
        world.switch(TaskSwitchSource::Jump, None);
        if refused {
            world.refused(exception::GP, 0);
        } else {
            assert_eq!(world.vcpu.pointers, Some([DIRECTORY | 1, 0, 0, pointer]));
            assert_eq!(world.vcpu.injected, None);
        }
    }
}

#[test]
fn a_tss_that_is_not_mapped_is_a_page_fault_before_anything_is_saved() {
    const TABLES: u64 = 0xe000;
    for missing in [OLD_TSS, NEW_TSS] {
        let mut world = World::with_tasks();
        world.put(TABLES, &(0xf000_u32 | 3).to_le_bytes());
        for page in 0..16_u64 {
            let entry = if page << 12 == missing { 0 } else { (page << 12 | 3) as u32 };
            world.put(0xf000 + 4 * page, &entry.to_le_bytes());
        }
        world.vcpu.state.cr3 = TABLES;
        world.vcpu.state.cr0 |= Cr0::PG.bits();
        let before = world.memory.0.clone();
        world.switch(TaskSwitchSource::Jump, None);
        assert_eq!(world.vcpu.injected.unwrap().vector, Vector(exception::PF));
        assert_eq!((world.vcpu.cr2 & !0xfff, world.task()), (missing, OLD));
        assert_eq!(world.memory.0, before);
    }
}
