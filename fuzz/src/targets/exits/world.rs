//! A guest of two CPUs with two functions and a shared region, and what must be so after each exit.

use std::cell::RefCell;
use std::ops::Range;

use arch::address::HpaRange;
use arch::exit::ExitReason;
use arch::interrupt::{InterruptRegisters, InterruptTarget};
use arch::machine::{CpuRequest, CpuidResult, GuestMemory, InterruptLine};
use arch::machine_check::{MachineCheck, Recorded};
use arch::register::{Cr4, Gpr, Rflags};
use arch::segment::{AccessRights, Segment, SegmentRegister};
use arch::vcpu::{InterruptMode, StartState};
use arch::{ApicId, Bdf, Gpa, Hpa, Vector};
use guest::cpuid::CpuidPolicy;
use guest::fake::{Done, FakeConfig, FakeMachine, FakeMemory, FakeVcpu};
use guest::lines::Line;
use guest::memory_map::GpaRange;
use guest::pci::{Host, SharedMemory, VirtualBus};
use guest::vm::{Context, CpuState, Guest, Next, Platform, Vm, VmLock};

use super::step::Exit;
use crate::targets::pci::Lying;

// The guest's memory map. RAM is mapped to itself, page by page; so is the last GiB below 4 GiB, and the GiB of
// `HIGH_BAR`.
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const DIRECTORY: u64 = 0x3000;
const TABLE: u64 = 0x4000;
pub(super) const CODE: u64 = 0x6000;
const IDT: u64 = 0x8000;
pub(super) const RAM: u64 = 0x1_0000;
pub(super) const ECAM: u64 = 0xe000_0000;
/// A 16 KiB BAR with an MSI-X table of four entries in its third page.
pub(super) const BAR: u64 = 0xfebd_0000;
const TABLE_PAGE: u64 = BAR + 0x2000;
const ENTRIES: u16 = 4;
/// A 64-bit BAR of 8 KiB.
pub(super) const HIGH_BAR: u64 = 0x40_0000_0000;
const NVME: Bdf = Bdf::new(0, 4, 0);
/// 64-bit MSI that can be masked, and an I/O BAR.
const NIC: Bdf = Bdf::new(0, 7, 0);
const REGION: HpaRange = HpaRange { start: Hpa::new(0x1_2340_0000), length: 0x1000 };
const LINES: [Line; 2] =
    [Line { input: 14, gsi: 14, active_low: false }, Line { input: 17, gsi: 40, active_low: true }];
/// The machine's CPUs behind the guest's.
const CPUS: [ApicId; 2] = [ApicId(6), ApicId(16)];
/// Where BARs may be in the guest.
const WINDOWS: [(u64, u64); 2] = [(0xf000_0000, 0xfec0_0000), (0x40_0000_0000, 0x80_0000_0000)];
/// The most lines of the log that an input can cause: what a guest can repeat is limited.
const MAX_LOG: usize = 120;

pub(super) struct Edge;

impl Platform for Edge {
    type Vcpu = FakeVcpu;
    type Machine = FakeMachine;
    type Memory = FakeMemory;
    type Config = Lying;
}

/// The guest's lock; it panics where it is taken twice.
struct Lock<'a>(RefCell<&'a mut Vm>);

impl VmLock for Lock<'_> {
    fn with<T>(&self, work: impl FnOnce(&mut Vm) -> T) -> T {
        work(&mut self.0.borrow_mut())
    }
}

pub(super) struct World {
    guest: Guest,
    vm: Vm,
    pub(super) cpus: Vec<(CpuState, FakeVcpu)>,
    pub(super) machine: FakeMachine,
    memory: FakeMemory,
    config: Lying,
}

std::thread_local! {
    /// One for all inputs: its guest lets go of it at the end of each.
    static SHARED: &'static SharedMemory = Box::leak(Box::new(SharedMemory::new(REGION.length)));
}

fn functions() -> FakeConfig {
    let mut config = FakeConfig::default();
    let header = [(0, 0x1234_8086, 0), (4, 0x0010_0003, 0x7ff), (8, 0x0108_0200, 0)];
    let bars = [
        (0x10, BAR as u32, 0xffff_c000),
        (0x18, 4, 0xffff_e000),
        (0x1c, (HIGH_BAR >> 32) as u32, !0),
    ];
    let msix =
        [(0x34, 0x40, 0), (0x40, 0x0003_0011, 0xc000_0000), (0x44, 0x2000, 0), (0x48, 0x3000, 0)];
    config.add(NVME, &[&header[..], &bars, &msix].concat());
    let header = [
        (0, 0x5678_8086, 0),
        (4, 0x0010_0003, 0x7ff),
        (8, 0x0200_0000, 0),
        (0x3c, 0x0000_0100, 0xff),
    ];
    let msi = [
        (0x34, 0x50, 0),
        (0x50, 0x0180_0005, 0x0071_0000),
        (0x54, 0, !3),
        (0x58, 0, !0),
        (0x5c, 0, 0xffff),
        (0x60, 0, !0),
    ];
    let io = [(0x10, 0xc001, 0xffff_ffe0)];
    config.add(NIC, &[&header[..], &msi, &io].concat());
    config
}

impl World {
    /// `head` says the mode and how the guest begins.
    pub(super) fn new(head: u8, lies: &[u8]) -> Self {
        let mode = [InterruptMode::Exitless, InterruptMode::Exiting, InterruptMode::Posted]
            [usize::from(head & 3) % 3];
        let mut machine = FakeMachine::of_cpus(CPUS.len());
        let vendor = if head & 4 == 0 { *b"Auth" } else { *b"Genu" };
        let answers = [
            (
                (0, 0),
                CpuidResult {
                    eax: 0x1f,
                    ebx: u32::from_le_bytes(vendor),
                    ..CpuidResult::default()
                },
            ),
            ((1, 0), CpuidResult { ecx: !0, edx: !0, ..CpuidResult::default() }),
            ((7, 0), CpuidResult { ebx: !0, ecx: !0, edx: !0, eax: 2 }),
            ((0x8000_0008, 0), CpuidResult { eax: 39, ..CpuidResult::default() }),
        ];
        machine.cpuid.extend(answers);
        machine.msrs =
            (0x800..0x840).chain([0x1b, 0x3a, 0xda0, 0x6e0]).map(|msr| (msr, 0)).collect();
        let mut real = functions();
        real.1 = machine.order.clone();
        // BARs are sized and what the guest owns is recorded at bring-up; all later reads may differ.
        let sized = [NVME, NIC].map(|bdf| (bdf, ::pci::bar::size_bars(&mut real, bdf, 6)));
        for (function, bars) in sized {
            machine.owned.add_function(&real, function, bars);
        }
        machine.owned.add_shared(REGION);
        machine.refuses = !lies.is_empty();
        machine.says = u64::from(head) << 56 | 0x1234_5678;
        let config = Lying::new(real, lies);
        let windows = WINDOWS.map(|(start, end)| GpaRange::between(start, end)).to_vec();
        let ecam = GpaRange::between(ECAM, ECAM + (1 << 28));
        let bus = VirtualBus::new(&config, &sized, Some(ecam), windows.clone())
            .or_else(|_| VirtualBus::new(&functions(), &sized, Some(ecam), windows));
        let mut bus = bus.unwrap();
        SHARED.with(|memory| bus.add_shared(memory, 0)).unwrap();
        if head & 8 != 0 {
            let _ = bus.wire(&config, NIC, 17);
        }
        let cpuid = CpuidPolicy::new(vec![ApicId(0), ApicId(1)], &machine);
        let guest = Guest::new("test".into(), mode, CPUS.to_vec(), cpuid);
        let cpus = (0..CPUS.len()).map(|index| {
            let interrupts = (mode == InterruptMode::Posted).then(InterruptRegisters::default);
            let vcpu = FakeVcpu { interrupts, ..FakeVcpu::default() };
            (CpuState::new(index, &guest, 0, &machine), vcpu)
        });
        let cpus = cpus.collect();
        let vm = Vm::new(CPUS.len(), bus, LINES.to_vec());
        let memory = FakeMemory(vec![0; RAM as usize]);
        machine.order.borrow_mut().clear();
        let mut world = Self { guest, vm, cpus, machine, memory, config };
        world.vm.bus.attach(&mut Host { machine: &mut world.machine, config: &mut world.config });
        world.make_tables();
        for cpu in 0..CPUS.len() {
            world.begin(cpu, head & 16 != 0);
        }
        world.check();
        world
    }

    pub(super) fn put(&mut self, at: u64, bytes: &[u8]) {
        self.memory.write(Gpa::new(at), bytes).unwrap();
    }

    fn make_tables(&mut self) {
        self.put(PML4, &(PDPT | 7).to_le_bytes());
        self.put(PDPT, &(DIRECTORY | 7).to_le_bytes());
        self.put(PDPT + 8 * 3, &(0xc000_0000_u64 | 0x87).to_le_bytes());
        self.put(PDPT + 8 * 256, &(HIGH_BAR | 0x87).to_le_bytes());
        self.put(DIRECTORY, &(TABLE | 7).to_le_bytes());
        for page in (0..RAM).step_by(4096) {
            self.put(TABLE + (page >> 12) * 8, &(page | 7).to_le_bytes());
        }
        for vector in 0..256 {
            self.put(IDT + 16 * vector + 5, &[0x8e]);
        }
    }

    /// A CPU in 64-bit mode, or as after a start-up IPI, with its local APIC on.
    fn begin(&mut self, cpu: usize, real_mode: bool) {
        self.cpus[cpu].1.load_start(real_mode);
        let vcpu = &mut self.cpus[cpu].1;
        (vcpu.state.gpr[Gpr::Rcx as usize], vcpu.state.gpr[Gpr::Rax as usize]) = (0x80f, 0x1ff);
        assert_eq!(self.exit(cpu, ExitReason::WriteMsr), Next::Resume);
    }

    /// What a guest's CPU has done since its last exit.
    pub(super) fn before(&mut self, cpu: usize, exit: &Exit<'_>) {
        self.machine.tsc = self.machine.tsc.wrapping_add(u64::from(exit.limit) << 12);
        if let Some((at, value)) = exit.store {
            // Not where a shadow is: a store there exits.
            let page = Some(Gpa::new(at).page());
            if !self.machine.shadow_at.contains(&page) {
                let _ = self.memory.write(Gpa::new(at), &value.to_le_bytes());
            }
        }
        self.machine.machine_check = match exit.limit % 4 {
            0 => MachineCheck::Contained(Recorded::default()),
            1 => MachineCheck::Lost(Recorded::default()),
            _ => MachineCheck::NotHere,
        };
        if matches!(exit.state % 32, 13..=15) || exit.switches() && !self.has_tasks(cpu) {
            self.begin_tasks(cpu, exit);
        }
        let vcpu = &mut self.cpus[cpu].1;
        for (register, value) in &exit.registers {
            vcpu.state.gpr[usize::from(*register)] = *value;
        }
        match exit.state % 32 {
            1 => vcpu.set_cpl(3),
            2 | 3 => vcpu.set_cpl(0),
            4 => vcpu.state.rflags ^= Rflags::IF.bits(),
            5 => vcpu.state.cr0 ^= 1 << 16,
            6 => vcpu.state.cr4 ^= 1 << (exit.limit & 31),
            7 => vcpu.state.rflags ^= 1 << 10,
            8 => vcpu.cr8 = exit.limit as u8 & 15,
            9 => vcpu.interrupt_shadow = true,
            10 => vcpu.state.cr0 ^= 1 << 31,
            11 => vcpu.load_start(exit.limit & 1 != 0),
            12 => vcpu.state.idtr.limit = exit.limit,
            _ => {}
        }
        if vcpu.state.rip >= RAM - 16 {
            vcpu.state.rip = CODE;
        }
        let at = vcpu.state.rip;
        if exit.code.len() < 16 && !self.machine.shadow_at.contains(&Some(Gpa::new(at).page())) {
            self.put(at, exit.code);
        }
        self.cpus[cpu].1.vectoring = exit.vectoring;
    }

    fn context<T>(
        &mut self,
        cpu: usize,
        work: impl FnOnce(&mut Context<'_, Edge, &Lock<'_>>) -> T,
    ) -> T {
        let (state, vcpu) = &mut self.cpus[cpu];
        work(&mut Context {
            guest: &self.guest,
            vm: &Lock(RefCell::new(&mut self.vm)),
            cpu: state,
            vcpu,
            machine: &mut self.machine,
            memory: &mut self.memory,
            config: &mut self.config,
        })
    }

    /// As the run loop does it.
    pub(super) fn exit(&mut self, cpu: usize, reason: ExitReason) -> Next {
        self.cpus[cpu].1.injected = None;
        let delivers = !self.guest.mode.is_exitless();
        let next = self.context(cpu, |context| {
            if delivers {
                context.take_interrupts();
            }
            context.handle(reason)
        });
        self.carry_out();
        if delivers && next == Next::Resume {
            self.context(cpu, |context| context.prepare_entry());
        }
        next
    }

    /// A step has ended so.
    pub(super) fn stepped(&mut self, cpu: usize, reason: ExitReason) -> Next {
        self.context(cpu, |context| context.locked(|context| context.stepped(&reason)));
        self.exit(cpu, reason)
    }

    pub(super) fn end_steps(&mut self, cpu: usize) {
        self.context(cpu, |context| context.locked(|context| context.end_steps()));
    }

    /// What CPUs have asked of others.
    fn carry_out(&mut self) {
        for (cpu, what) in core::mem::take(&mut self.machine.requests) {
            assert!(cpu < CPUS.len(), "{what:?} to CPU {cpu}");
            match what {
                CpuRequest::Init => {
                    self.context(cpu, |context| context.locked(|context| context.init()))
                }
                CpuRequest::Start(vector) => {
                    self.context(cpu, |context| context.locked(|context| context.start(vector)));
                }
                CpuRequest::Nmi => {}
            }
        }
    }

    /// Only what is the guest's was reached since the last call.
    pub(super) fn check(&mut self) {
        for (at, width) in core::mem::take(&mut self.machine.touched) {
            let bytes = at.as_u64()..at.as_u64() + u64::from(width.bytes());
            assert!(is_own(&bytes), "{bytes:x?} is not the guest's");
            let table = TABLE_PAGE..TABLE_PAGE + u64::from(ENTRIES) * 16;
            assert!(
                bytes.end <= table.start || table.end <= bytes.start,
                "{bytes:x?} is in the MSI-X table"
            );
        }
        for (page, at) in &self.machine.mapped {
            let bytes = at.as_u64()..at.as_u64() + 4096;
            assert!(
                is_own(&bytes) && bytes.start != TABLE_PAGE,
                "{bytes:x?} is mapped at {page:#x}"
            );
            assert!(
                WINDOWS.iter().any(|(start, end)| (*start..*end).contains(page)),
                "{page:#x} is in no window"
            );
        }
        let order = core::mem::take(&mut *self.machine.order.borrow_mut());
        order.iter().for_each(|done| self.check_done(*done));
        self.machine.routes.iter().for_each(|(_, target)| self.check_target(*target));
        self.machine.routes.clear();
        let own = core::mem::take(&mut self.machine.self_ipis);
        own.into_iter().for_each(|vector| self.check_vector(vector));
        self.machine.ipis.clear();
        self.machine.rung.clear();
        assert!(self.machine.log.len() < MAX_LOG, "{:#?}", self.machine.log);
        assert!(self.machine.shadow_at.iter().flatten().all(|page| page.as_u64() < RAM));
    }

    fn check_done(&self, done: Done) {
        match done {
            Done::Route(InterruptLine::Message { function, .. }, _) => {
                assert!([NVME, NIC].contains(&function))
            }
            Done::Route(InterruptLine::Gsi(gsi), _) => {
                assert!(LINES.iter().any(|line| line.gsi == gsi), "line {gsi}")
            }
            Done::Entry(function, index, _) => assert!(function == NVME && index < ENTRIES),
            Done::Ring(to, vector) => {
                assert!(CPUS.contains(&to), "a doorbell of {to:?}");
                self.check_vector(vector);
            }
            Done::Ipi(cpu, vector) => {
                assert!(cpu < CPUS.len(), "an IPI to CPU {cpu}");
                self.check_vector(vector);
            }
            Done::Config(function, offset, _) => {
                assert!([NVME, NIC].contains(&function));
                let forbidden = [0..4, 6..0x3c, 0x3d..0x40, 0x100..0x1000];
                assert!(
                    !forbidden.iter().any(|range| range.contains(&offset)),
                    "a write to {offset:#x} of {function}"
                );
            }
            Done::Pit(..) => panic!("the PIT is not the guest's"),
            Done::Shadow | Done::Register(..) => {}
        }
    }

    fn check_target(&self, target: Option<InterruptTarget>) {
        if let Some(target) = target {
            assert!(CPUS.contains(&target.destination), "{target:?}");
            self.check_vector(target.vector);
        }
    }

    /// In the exitless mode a vector reaches a CPU only where the guest has it granted.
    fn check_vector(&self, vector: Vector) {
        let granted = !self.guest.mode.is_exitless() || self.guest.grants.allows(vector);
        assert!(granted && vector.0 >= 16, "{vector:?} without a grant");
    }

    /// The guest's life is over: nothing of the machine is mapped any more.
    pub(super) fn end(mut self) {
        self.vm.bus.detach(&mut Host { machine: &mut self.machine, config: &mut self.config });
        self.check();
        let left = &self.machine.mapped;
        assert!(left.is_empty(), "{left:x?}");
    }
}

/// Within a BAR or the shared region.
fn is_own(bytes: &Range<u64>) -> bool {
    let region = REGION.start.as_u64();
    [(BAR, 0x4000), (HIGH_BAR, 0x2000), (region, REGION.length)]
        .iter()
        .any(|(start, length)| *start <= bytes.start && bytes.end <= start + length)
}

/// What only a guest's own instructions change.
trait Instructions {
    fn load_start(&mut self, real_mode: bool);
    fn set_cpl(&mut self, cpl: u32);
}

impl Instructions for FakeVcpu {
    fn load_start(&mut self, real_mode: bool) {
        let state = &mut self.state;
        *state = StartState::after_sipi(6);
        if real_mode {
            return;
        }
        let flat = |access| Segment { selector: 8, base: 0, limit: u32::MAX, access };
        state.segments = [flat(AccessRights::DATA32); 8];
        state.segments[SegmentRegister::Cs as usize] = flat(AccessRights::CODE64);
        (state.cr0, state.cr3, state.cr4) = (0x8001_0011, PML4, Cr4::PAE.bits());
        (state.efer, state.rflags, state.rip) = (0x500, 2 | Rflags::IF.bits(), CODE);
    }

    fn set_cpl(&mut self, cpl: u32) {
        let stack = &mut self.state.segments[SegmentRegister::Ss as usize];
        stack.access.0 = stack.access.0 & !0x60 | cpl << 5;
    }
}
