//! What a guest's CPU has loaded: code, page tables, an IDT, its local APIC.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU8, Ordering};

use arch::gate::GateFormat;
use arch::machine::SharedPage;
use arch::register::Gpr;
use arch::segment::{DescriptorTable, SegmentRegister};
use arch::vcpu::InterruptMode;
use arch::{ApicId, Gpa, Gva, Vector, Width};
use eli::ShadowIdt;
use eli::apic::{ApicAction, ApicRead};
use eli::{Grants, Reason, VirtualApic};
use guest::fake::{FakeMemory, FakeVcpu};
use iced_x86::{Decoder, DecoderOptions};
use insn::{Access, Mode, Operation, PagingRegisters};

use crate::input::Input;

const MODES: [InterruptMode; 3] =
    [InterruptMode::Exitless, InterruptMode::Exiting, InterruptMode::Posted];

/// A CPU with any registers.
pub(super) fn any_registers(vcpu: &mut FakeVcpu, input: &mut Input<'_>) {
    for gpr in Gpr::ALL {
        vcpu.state.gpr[gpr as usize] = input.qword();
    }
    for register in SegmentRegister::ALL {
        let segment = &mut vcpu.state.segments[register as usize];
        (segment.base, segment.limit) = (input.dword().into(), input.dword());
        segment.access.0 = u32::from(input.word()) | u32::from(input.bit()) << 16;
    }
    vcpu.state.rflags = input.dword().into();
    (vcpu.state.cr0, vcpu.state.cr4) = (input.dword().into(), input.dword().into());
    (vcpu.state.efer, vcpu.state.rip) = (input.word().into(), input.qword());
}

pub(super) fn instruction(input: &[u8]) {
    let mut input = Input(input);
    let (mode, bits) = input.one_of(&[(Mode::Bits16, 16), (Mode::Bits32, 32), (Mode::Bits64, 64)]);
    let code = input.bytes(15);
    let Ok(decoded) = insn::decode(code, mode) else { return };
    assert!(decoded.length >= 1 && usize::from(decoded.length) <= code.len());
    let other = Decoder::new(bits, code, DecoderOptions::NO_INVALID_CHECK).decode();
    assert_eq!(other.len(), usize::from(decoded.length), "{code:02x?}");
    let mut vcpu = FakeVcpu::default();
    any_registers(&mut vcpu, &mut input);
    let memory = input.qword();
    let _ = decoded.linear_address(&vcpu);
    let _ = decoded.check_segment(&vcpu, decoded.width.bytes().into(), input.bit());
    if decoded.operation.is_string() {
        let _ = (decoded.source(&vcpu), decoded.destination(&vcpu));
        let iterations = decoded.iterations(&vcpu);
        decoded.advance(&mut vcpu, iterations.min(u64::from(input.byte())));
    } else if !matches!(
        decoded.operation,
        Operation::DescriptorTable { .. } | Operation::SystemSegment { .. }
    ) {
        let evaluation = decoded.evaluate(&vcpu, memory & decoded.width.mask());
        evaluation.commit(&mut vcpu);
    }
}

pub(super) fn paging(input: &[u8]) {
    const MEMORY: usize = 8 << 12;
    let mut input = Input(input);
    let mut vcpu = FakeVcpu::default();
    any_registers(&mut vcpu, &mut input);
    vcpu.state.cr3 = u64::from(input.byte() & 7) << 12 | u64::from(input.byte());
    vcpu.pkru = input.dword();
    let mut memory = FakeMemory(vec![0; MEMORY]);
    let address = Gva::new(input.qword());
    let kinds = input.byte();
    // Tables of few entries, each at its place: any other place reads as not present.
    while !input.is_empty() {
        let at = usize::from(input.word() & 0xfff) << 3;
        let entry = u64::from(input.byte() & 7) << 12
            | u64::from(input.word() & 0xfff)
            | input.qword() & !0x7fff;
        memory.0[at..at + 8].copy_from_slice(&entry.to_le_bytes());
    }
    let access = if kinds & 1 == 0 { Access::read(&vcpu) } else { Access::write(&vcpu) };
    let _ = insn::translate(&vcpu, &memory, address, access);
    let registers = PagingRegisters {
        cr0: vcpu.state.cr0,
        cr3: vcpu.state.cr3,
        cr4: vcpu.state.cr4,
        efer: vcpu.state.efer,
    };
    let _ = registers.translate(&memory, address);
    let mut bytes = [0; 16];
    let _ = insn::read_linear(&vcpu, &memory, address, access, &mut bytes);
    let before = memory.0.clone();
    if let Ok(fetched) = insn::fetch_instruction(&vcpu, &memory) {
        assert!(fetched.1 <= insn::MAX_LENGTH);
    }
    assert!(before == memory.0, "a fetch writes nothing");
}

/// Registers of the physical local APIC that a guest's values may reach: TPR, EOI, SVR, the timer's LVT, its count and
/// divisor, SELF IPI.
const PHYSICAL: [u32; 7] = [0x808, 0x80b, 0x80f, 0x832, 0x838, 0x83e, 0x83f];
const TIMER: u32 = 0x832;

pub(super) fn apic(input: &[u8]) {
    let mut input = Input(input);
    let mode = input.one_of(&MODES);
    let mut apic = VirtualApic::new(mode, ApicId(3), input.bit());
    let mut granted = BTreeSet::new();
    while !input.is_empty() {
        let (kind, register, value) = (input.byte(), u32::from(input.byte()), input.dword());
        let action = match kind % 5 {
            0 => match apic.write(0x800 + register, u64::from(value)) {
                Ok(action) => action,
                Err(_) => continue,
            },
            1 => match apic.write_icr(u64::from(input.dword()) << 32 | u64::from(value)) {
                Ok(action) => action,
                Err(_) => continue,
            },
            2 => apic.write_page(
                register as u16 * 4,
                input.one_of(&[Width::Byte, Width::Word, Width::Dword]),
                value,
            ),
            3 => {
                let read = if kind & 0x80 == 0 {
                    apic.read(0x800 + register).ok()
                } else {
                    apic.read_page(register as u16 * 4).ok()
                };
                if let Some(ApicRead::Physical(msr)) = read {
                    assert!((0x802..0x840).contains(&msr), "{msr:#x}");
                }
                continue;
            }
            _ => {
                let _ = apic.write_base(0xfee0_0000 | u64::from(value & 0xfff), 40);
                continue;
            }
        };
        if let Some((vector, _)) = action.vector() {
            // The physical APIC notes an error in place of an illegal vector of its own timer; nobody would at an IPI.
            assert!(vector.0 >= 16 || !matches!(action, ApicAction::Ipi(_)), "{action:?}");
            granted.insert(vector.0);
        }
        match action {
            ApicAction::WritePhysical { msr, value } | ApicAction::Grant { msr, value, .. } => {
                assert!(PHYSICAL.contains(&msr), "{action:x?}");
                // A vector that reaches the CPU with no exit: the timer's.
                let sends = mode.is_exitless() && msr == TIMER && value & 1 << 16 == 0;
                assert!(!sends || granted.contains(&(value as u8)), "{action:x?}");
            }
            ApicAction::Eoi { .. } => assert!(!mode.is_exitless()),
            ApicAction::Ipi(_) | ApicAction::None => {}
        }
        let _ = apic.addressing();
    }
}

pub(super) fn shadow(input: &[u8]) {
    const PAGE: usize = 4096;
    let mut input = Input(input);
    let format = input.one_of(&[GateFormat::Bits32, GateFormat::Bits64]);
    let base = u64::from(input.word() & 0xfff);
    let idtr = DescriptorTable { base: Gva::new(0x1_0000 + base), limit: input.word() };
    let pages = [Some(Gpa::new(0)), Some(Gpa::new(PAGE as u64))];
    let idt = ShadowIdt::new(idtr, format, pages);
    let mut memory = FakeMemory(vec![0; 2 * PAGE]);
    let seed = input.bytes(64);
    for (at, byte) in memory.0.iter_mut().enumerate() {
        *byte = seed.get(at % 67).copied().unwrap_or(at as u8);
    }
    let grants = Grants::new();
    let shadows = [[const { AtomicU8::new(0) }; PAGE], [const { AtomicU8::new(0) }; PAGE]];
    let derive = |page: usize,
                  from: usize,
                  length: usize,
                  memory: &FakeMemory,
                  shadows: &[SharedPage; 2],
                  grants: &Grants| {
        let end = (from + length).min(PAGE);
        let real = &memory.0[page * PAGE + from..page * PAGE + end];
        idt.derive(page, from, real, grants, &shadows[page]);
    };
    derive(0, 0, PAGE, &memory, &shadows, &grants);
    derive(1, 0, PAGE, &memory, &shadows, &grants);
    while !input.is_empty() {
        let (page, at) = (usize::from(input.byte() & 1), usize::from(input.word()) % PAGE);
        if input.bit() {
            let vector = Vector(input.byte());
            grants.grant(vector, Reason::Device);
            if let (Some(flags), Some(at)) =
                (idt.real_flags(vector, &memory), idt.flags_position(vector))
            {
                idt.derive(at.page, at.offset, &[flags], &grants, &shadows[at.page]);
            }
        } else {
            let new = input.bytes(16);
            let length = new.len().min(PAGE - at);
            memory.0[page * PAGE + at..][..length].copy_from_slice(&new[..length]);
            derive(page, at, length, &memory, &shadows, &grants);
        }
    }
    let mut flags = BTreeSet::new();
    for vector in (0..=255).map(Vector) {
        let Some(at) = idt.flags_position(vector) else { continue };
        flags.insert(at.page * PAGE + at.offset);
        let (seen, real) = (
            shadows[at.page][at.offset].load(Ordering::Relaxed),
            memory.0[at.page * PAGE + at.offset],
        );
        if grants.allows(vector) {
            assert_eq!(seen, real);
        } else {
            assert_eq!(seen, real & 0x60 | 0x0e, "the gate of {vector:?} is closed");
        }
    }
    for at in (0..2 * PAGE).filter(|at| !flags.contains(at)) {
        assert_eq!(shadows[at / PAGE][at % PAGE].load(Ordering::Relaxed), memory.0[at], "{at:#x}");
    }
}
