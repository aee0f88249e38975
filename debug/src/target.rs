//! What gdb asks for, by the traits of `gdbstub`.

use core::convert::Infallible;

use arch::machine::{GuestMemory as _, NotGuestMemory};
use arch::register::Cr4;
use arch::vcpu::DebugRegisters;
use arch::{Gpa, Gva};
use gdbstub::common::{Signal, Tid};
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadResume, MultiThreadResumeOps, MultiThreadSchedulerLocking,
    MultiThreadSchedulerLockingOps, MultiThreadSingleStep, MultiThreadSingleStepOps,
};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps,
    SwBreakpoint, SwBreakpointOps, WatchKind,
};
use gdbstub::target::ext::monitor_cmd::MonitorCmdOps;
use gdbstub::target::ext::target_description_xml_override::{
    TargetDescriptionXmlOverride, TargetDescriptionXmlOverrideOps,
};
use gdbstub::target::{Target, TargetError, TargetResult};

use crate::breakpoints::{Breakpoint, Breakpoints as All, Kind};
use crate::mailbox::{Order, Stop};
use crate::patches::Patches;
use crate::registers::{Registers, X86_64, description};
use crate::session::Guest;

/// A guest as gdb may use it.
pub(crate) struct Debugged<G> {
    pub(crate) guest: G,
    breakpoints: All,
    /// Those beyond, in the guest's code.
    patches: Patches,
    /// The guest had AVX's registers when gdb came, and gdb knows of them.
    shows_upper: bool,
    /// CPUs that do one instruction when the guest goes on (bit n for CPU n).
    stepping: u64,
    /// CPUs that gdb has said anything about.
    named: u64,
    /// The others stay where they are.
    only_named: bool,
    /// CPUs that went on last.
    released: u64,
}

impl<G: Guest> Debugged<G> {
    pub(crate) fn new(guest: G) -> Self {
        let (stepping, named, only_named, released) = (0, 0, false, u64::MAX);
        let (breakpoints, patches) = (All::default(), Patches::default());
        let shows_upper = false;
        Self { guest, breakpoints, patches, shows_upper, stepping, named, only_named, released }
    }

    /// Has all CPUs stand.
    pub(crate) fn call(&mut self) {
        for cpu in 0..self.guest.cpus() {
            self.guest.mailbox(cpu, crate::DebugMailbox::want);
        }
        self.guest.call();
    }

    /// The same where one has come since the call, which it has not heard.
    pub(crate) fn call_again(&mut self) {
        let cpus = 0..self.guest.cpus();
        let missed = |cpu| self.guest.mailbox(cpu, |mailbox| mailbox.missed_call());
        if cpus.filter_map(missed).any(|missed| missed) {
            self.call();
        }
    }

    /// gdb comes: what it is told of the registers is the same until it goes.
    pub(crate) fn meet(&mut self) {
        let cpus = 0..self.guest.cpus();
        let has = |cpu| self.read_register(thread(cpu), |own| own.upper.is_some());
        self.shows_upper = cpus.into_iter().filter_map(has).any(|has| has);
    }

    /// Whether all that are there stand; `None` where none is there.
    pub(crate) fn all_stand(&mut self) -> Option<bool> {
        let mailboxes = (0..self.guest.cpus()).filter_map(|cpu| {
            self.guest
                .mailbox(cpu, |mailbox| mailbox.present().then_some(mailbox.stop().is_some()))?
        });
        mailboxes.reduce(|all, one| all && one)
    }

    /// The first CPU that stands after it went on, and why: one that was not just asked to, if there is one.
    pub(crate) fn stopped(&mut self) -> Option<(usize, Stop)> {
        let mut asked = None;
        let released = self.released;
        for cpu in (0..self.guest.cpus()).filter(|cpu| has(released, *cpu)) {
            match self.guest.mailbox(cpu, |mailbox| mailbox.stop()).flatten() {
                Some(Stop::Asked) => asked = asked.or(Some((cpu, Stop::Asked))),
                Some(why) => return Some((cpu, why)),
                None => {}
            }
        }
        asked
    }

    /// What a CPU that has met these breakpoints has met, as gdb knows it.
    pub(crate) fn met(&self, slots: u8) -> Option<Breakpoint> {
        self.breakpoints.first(slots)
    }

    /// All CPUs leave gdb, and nothing of it stays.
    pub(crate) fn release(&mut self) {
        self.breakpoints.clear();
        self.patches.of(self.guest.generation()).clear(self.guest.memory());
        self.order(u64::MAX, |_| Order::Leave);
    }

    fn order(&mut self, released: u64, order: impl Fn(usize) -> Order) {
        self.released = released;
        for cpu in (0..self.guest.cpus()).filter(|cpu| has(released, *cpu)) {
            self.guest.mailbox(cpu, |mailbox| mailbox.give(order(cpu)));
        }
    }

    pub(crate) fn read_register<T>(
        &mut self,
        tid: Tid,
        read: impl FnOnce(&Registers) -> T,
    ) -> Option<T> {
        self.guest.mailbox(index(tid), |mailbox| mailbox.registers().map(read)).flatten()
    }

    /// Adds a breakpoint: in the debug registers, or where it can be one, in the guest's code.
    fn add(&mut self, new: Breakpoint) -> bool {
        if self.breakpoints.add(new) {
            return true;
        }
        if new.kind == SOFTWARE {
            return self.patch(new.address);
        }
        let Some(other) = self.breakpoints.make_room() else { return false };
        let made = self.breakpoints.add(new) && self.patch(other.address);
        if !made {
            self.breakpoints.remove(new);
            self.breakpoints.add(other);
        }
        made
    }

    /// Puts a breakpoint in the guest's code, where one of its CPUs has it.
    fn patch(&mut self, address: u64) -> bool {
        let cpus = 0..self.guest.cpus();
        let place = |cpu| Some(self.place(thread(cpu), address, 1)?.0);
        let Some(gpa) = cpus.into_iter().find_map(place) else { return false };
        self.patches.of(self.guest.generation()).insert(address, gpa, self.guest.memory())
    }

    fn remove(&mut self, old: Breakpoint) -> bool {
        self.breakpoints.remove(old)
            || old.kind == SOFTWARE
                && self.patches.of(self.guest.generation()).remove(old.address, self.guest.memory())
    }

    /// Bytes of the RAM as the guest has them, but for breakpoints.
    pub(crate) fn read_physical(
        &mut self,
        gpa: Gpa,
        bytes: &mut [u8],
    ) -> Result<(), NotGuestMemory> {
        self.guest.memory().read(gpa, bytes)?;
        self.patches.of(self.guest.generation()).unpatch(gpa, bytes);
        Ok(())
    }

    /// Where `length` bytes from a linear address are, as far as they are in its page.
    fn place(&mut self, tid: Tid, at: u64, length: usize) -> Option<(Gpa, usize)> {
        let gva = Gva::new(at);
        let in_page = length.min((arch::address::PAGE_SIZE - gva.page_offset()) as usize);
        let paging = self.read_register(tid, |registers| registers.paging)?;
        Some((paging.translate(self.guest.memory(), gva).ok()?, in_page))
    }
}

/// EFER.LMA.
const LONG_MODE: u64 = 1 << 10;

fn index(tid: Tid) -> usize {
    tid.get() - 1
}

/// None for a CPU that no guest has.
const fn bit(cpu: usize) -> u64 {
    if cpu < 64 { 1 << cpu } else { 0 }
}

const fn has(cpus: u64, cpu: usize) -> bool {
    cpus & bit(cpu) != 0
}

/// The thread that a virtual CPU is.
pub(crate) fn thread(cpu: usize) -> Tid {
    Tid::MIN.saturating_add(cpu)
}

impl<G: Guest> Target for Debugged<G> {
    type Arch = X86_64;
    type Error = Infallible;

    fn base_ops(&mut self) -> BaseOps<'_, X86_64, Infallible> {
        BaseOps::MultiThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }

    fn support_target_description_xml_override(
        &mut self,
    ) -> Option<TargetDescriptionXmlOverrideOps<'_, Self>> {
        Some(self)
    }

    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }

    /// What follows is for other debuggers and for systems with processes.
    fn use_lldb_register_info(&self) -> bool {
        false
    }

    fn use_fork_stop_reason(&self) -> bool {
        false
    }

    fn use_vfork_stop_reason(&self) -> bool {
        false
    }

    fn use_vforkdone_stop_reason(&self) -> bool {
        false
    }

    /// A serial line may lose bytes.
    fn use_no_ack_mode(&self) -> bool {
        false
    }
}

impl<G: Guest> TargetDescriptionXmlOverride for Debugged<G> {
    fn target_description_xml(
        &self,
        annex: &[u8],
        offset: u64,
        length: usize,
        to: &mut [u8],
    ) -> TargetResult<usize, Self> {
        if annex != b"target.xml" {
            return Err(TargetError::NonFatal);
        }
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let text = description(self.shows_upper).into_iter().flat_map(str::bytes).skip(offset);
        let places = to.iter_mut().take(length).zip(text);
        Ok(places.map(|(place, byte)| *place = byte).count())
    }
}

impl<G: Guest> MultiThreadBase for Debugged<G> {
    fn read_registers(&mut self, to: &mut Registers, tid: Tid) -> TargetResult<(), Self> {
        *to = self.read_register(tid, |own| *own).ok_or(TargetError::NonFatal)?;
        to.shows_upper = self.shows_upper;
        Ok(())
    }

    fn write_registers(&mut self, from: &Registers, tid: Tid) -> TargetResult<(), Self> {
        let write = |mailbox: &mut crate::DebugMailbox| {
            let paging = mailbox.registers()?.paging;
            // The CPU would refuse to enter the guest there (Intel SDM, "Checks on Guest RIP, RFLAGS, and SSP").
            let there = if paging.efer & LONG_MODE == 0 {
                from.rip >> 32 == 0
            } else {
                insn::canonical(from.rip, paging.cr4 & Cr4::LA57.bits() != 0)
            };
            let own = mailbox.registers_mut().filter(|_| there)?;
            (own.general, own.rip, own.rflags) = (from.general, from.rip, from.rflags);
            own.fpu = from.fpu;
            own.upper = own.upper.map(|own| from.upper.unwrap_or(own));
            Some(())
        };
        self.guest.mailbox(index(tid), write).flatten().ok_or(TargetError::NonFatal)
    }

    fn read_addrs(&mut self, start: u64, to: &mut [u8], tid: Tid) -> TargetResult<usize, Self> {
        let mut done = 0;
        while let Some(rest) = to.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = start.wrapping_add(done as u64);
            let Some((gpa, length)) = self.place(tid, at, rest.len()) else { break };
            let Some(part) = rest.get_mut(..length) else { break };
            if self.read_physical(gpa, part).is_err() {
                break;
            }
            done += length;
        }
        if done == 0 && !to.is_empty() { Err(TargetError::NonFatal) } else { Ok(done) }
    }

    fn write_addrs(&mut self, start: u64, from: &[u8], tid: Tid) -> TargetResult<(), Self> {
        let mut done = 0;
        while let Some(rest) = from.get(done..).filter(|rest| !rest.is_empty()) {
            let at = start.wrapping_add(done as u64);
            let (gpa, length) = self.place(tid, at, rest.len()).ok_or(TargetError::NonFatal)?;
            let part = rest.get(..length).unwrap_or_default();
            self.guest.memory().write(gpa, part).map_err(|_| TargetError::NonFatal)?;
            self.patches.of(self.guest.generation()).written(gpa, part, self.guest.memory());
            done += length;
        }
        Ok(())
    }

    fn list_active_threads(&mut self, active: &mut dyn FnMut(Tid)) -> Result<(), Infallible> {
        for cpu in 0..self.guest.cpus() {
            if self.guest.mailbox(cpu, |mailbox| mailbox.stop().is_some()) == Some(true) {
                active(thread(cpu));
            }
        }
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }
}

impl<G: Guest> MultiThreadResume for Debugged<G> {
    fn resume(&mut self) -> Result<(), Infallible> {
        let patches = self.patches.of(self.guest.generation());
        let (patched, patches) = (patches.any(), patches.places());
        let breakpoints = self.breakpoints.registers();
        let breakpoints = breakpoints.or(patched.then(DebugRegisters::default));
        let stepping = self.stepping;
        let released = if self.only_named { self.named } else { u64::MAX };
        self.order(released, |cpu| Order::Go { step: has(stepping, cpu), breakpoints, patches });
        Ok(())
    }

    fn clear_resume_actions(&mut self) -> Result<(), Infallible> {
        (self.stepping, self.named, self.only_named) = (0, 0, false);
        Ok(())
    }

    fn set_resume_action_continue(
        &mut self,
        tid: Tid,
        _: Option<Signal>,
    ) -> Result<(), Infallible> {
        self.named |= bit(index(tid));
        self.stepping &= !bit(index(tid));
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl<G: Guest> MultiThreadSchedulerLocking for Debugged<G> {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), Infallible> {
        self.only_named = true;
        Ok(())
    }
}

impl<G: Guest> MultiThreadSingleStep for Debugged<G> {
    fn set_resume_action_step(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), Infallible> {
        self.named |= bit(index(tid));
        self.stepping |= bit(index(tid));
        Ok(())
    }
}

impl<G: Guest> Breakpoints for Debugged<G> {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

const SOFTWARE: Kind = Kind::Execute { software: true };

const fn execute(address: u64, software: bool) -> Breakpoint {
    Breakpoint { address, length: 1, kind: Kind::Execute { software } }
}

/// As long as the CPU has room, no byte of the guest's code is changed: these are of the hardware too.
impl<G: Guest> SwBreakpoint for Debugged<G> {
    fn add_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.add(execute(address, true)))
    }

    fn remove_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.remove(execute(address, true)))
    }
}

impl<G: Guest> HwBreakpoint for Debugged<G> {
    fn add_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.add(execute(address, false)))
    }

    fn remove_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.remove(execute(address, false)))
    }
}

fn data(address: u64, length: u64, kind: WatchKind) -> Breakpoint {
    let kind = match kind {
        WatchKind::Write => Kind::Write,
        WatchKind::Read => Kind::Access { read: true },
        WatchKind::ReadWrite => Kind::Access { read: false },
    };
    Breakpoint { address, length: u8::try_from(length).unwrap_or(0), kind }
}

impl<G: Guest> HwWatchpoint for Debugged<G> {
    fn add_hw_watchpoint(
        &mut self,
        address: u64,
        length: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        Ok(self.add(data(address, length, kind)))
    }

    fn remove_hw_watchpoint(
        &mut self,
        address: u64,
        length: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        Ok(self.remove(data(address, length, kind)))
    }
}
