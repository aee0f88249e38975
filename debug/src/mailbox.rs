//! Where a virtual CPU leaves its registers while it stands, and finds what to do next.
//!
//! The CPU itself writes [`DebugMailbox::stand`] and takes the [`Order`]; between the two the stub reads and writes. Whoever has
//! the mailbox locks it.

use crate::fpu::Fxsave;
use arch::vcpu::DebugRegisters;
use arch::vcpu::SystemCallMsrs;

use crate::patches::Places;
use crate::registers::Registers;

/// Why a CPU stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// It was asked to.
    Asked,
    /// It has done the one instruction that it was to do.
    Step,
    /// Its guest has crashed: it will never run again.
    Crashed,
    /// It has met breakpoints: bit n for DRn.
    Breakpoint(u8),
    /// It has met one that is in the guest's code, and is to find the guest's byte there next.
    Patch,
}

/// What a CPU that stands is to do.
#[expect(clippy::large_enum_variant, reason = "there is one for each CPU")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// Stand.
    Stay,
    /// Go on, with these breakpoints in the debug registers; with `step` for one instruction.
    Go {
        /// Only one instruction.
        step: bool,
        /// The breakpoints; `None` for the guest's own. There are some where there are `patches`.
        breakpoints: Option<DebugRegisters>,
        /// The breakpoints in the guest's code.
        patches: Places,
    },
    /// Go on as if nobody had ever been attached.
    Leave,
}

/// One virtual CPU's mailbox.
#[derive(Clone, Copy, Debug)]
pub struct DebugMailbox {
    /// The CPU runs the guest, or stands in it.
    present: bool,
    stop: Option<Stop>,
    /// It is to stand, though it has not yet looked.
    wanted: bool,
    registers: Registers,
    changed: bool,
    order: Order,
}

/// For the CPU whose mailbox it is.
impl DebugMailbox {
    /// Of a CPU that does not run.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            present: false,
            stop: None,
            wanted: false,
            registers: EMPTY,
            changed: false,
            order: Order::Leave,
        }
    }

    /// The CPU is about to run the guest; what it was last given to do.
    pub fn arrive(&mut self) -> Order {
        (self.present, self.stop, self.wanted) = (true, None, false);
        self.order
    }

    /// The CPU does not run the guest any more.
    pub fn leave(&mut self) {
        (self.present, self.stop, self.wanted) = (false, None, false);
    }

    /// Whether it is to stand.
    #[must_use]
    pub const fn wanted(&self) -> bool {
        self.wanted
    }

    /// The CPU stands, with these registers.
    pub fn stand(&mut self, why: Stop, registers: Registers) {
        (self.stop, self.wanted, self.registers) = (Some(why), false, registers);
        (self.changed, self.order) = (false, Order::Stay);
    }

    /// The CPU looks whether it is to go on: with its registers, where they have changed.
    pub fn take(&mut self) -> Option<(Order, Option<Registers>)> {
        if self.order == Order::Stay {
            return None;
        }
        Some((self.order, self.changed.then_some(self.registers)))
    }
}

/// For the stub.
impl DebugMailbox {
    /// Has the CPU stand, unless it does.
    pub fn want(&mut self) {
        self.wanted = self.present && self.stop.is_none();
    }

    /// Whether the CPU has come since all were to stand: it runs, and nobody wants it to stand.
    pub(crate) const fn missed_call(&self) -> bool {
        self.present && self.stop.is_none() && !self.wanted
    }

    /// Whether the CPU runs, or stands, in the guest.
    pub(crate) const fn present(&self) -> bool {
        self.present
    }

    /// Why it stands, if it does.
    pub(crate) const fn stop(&self) -> Option<Stop> {
        self.stop
    }

    /// The registers of a CPU that stands.
    pub(crate) fn registers(&self) -> Option<&Registers> {
        self.stop.is_some().then_some(&self.registers)
    }

    /// The same, to change.
    pub(crate) fn registers_mut(&mut self) -> Option<&mut Registers> {
        self.changed |= self.stop.is_some();
        self.stop.is_some().then_some(&mut self.registers)
    }

    /// What it is to do. A CPU that is not there finds it when it comes; one that stands counts as running from here on,
    /// though it has not yet looked.
    pub(crate) fn give(&mut self, order: Order) {
        self.order = order;
        self.stop = None;
    }
}

const EMPTY: Registers = Registers {
    general: [0; 16],
    rip: 0,
    rflags: 2,
    segments: [0; 6],
    fpu: Fxsave([0; 512]),
    upper: None,
    shows_upper: false,
    bases: [0; 2],
    paging: insn::PagingRegisters { cr0: 0, cr3: 0, cr4: 0, efer: 0 },
    cr2: 0,
    calls: SystemCallMsrs {
        star: 0,
        lstar: 0,
        cstar: 0,
        fmask: 0,
        kernel_gs_base: 0,
        sysenter: [0; 3],
    },
    debug: DebugRegisters { addresses: [0; 4], status: 0, control: 0 },
};

impl Default for DebugMailbox {
    fn default() -> Self {
        Self::new()
    }
}
