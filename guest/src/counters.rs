//! How often each vCPU left the guest, by reason.
//!
//! The order of [`Counter`] is the guest's interface: CPUID leaf 0x4000_0101 (see [`crate::cpuid`])
//! and the report of a run speak of the same list.

use core::fmt;

use arch::ExitReason;

macro_rules! counters {
    ($($variant:ident = $key:literal),* $(,)?) => {
        /// What is counted: the exit reasons by [`Self::of`], and two causes that are told
        /// apart from their reason.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Counter { $($variant),* }

        impl Counter {
            /// All of them, in the order of the guest's interface.
            pub const ALL: [Self; COUNTERS] = [$(Self::$variant),*];

            /// Its key in reports.
            #[must_use]
            pub const fn key(self) -> &'static str {
                match self { $(Self::$variant => $key),* }
            }
        }

        /// Number of counters.
        pub const COUNTERS: usize = [$($key),*].len();
    };
}

counters! {
    Cpuid = "cpuid",
    Io = "io",
    Msr = "msr",
    DescriptorTable = "descriptor_table",
    NestedPageFault = "nested_page_fault",
    Exception = "exception",
    Nmi = "nmi",
    ExternalInterrupt = "external_interrupt",
    InterruptWindow = "interrupt_window",
    PreemptionTimer = "preemption_timer",
    Halt = "halt",
    TripleFault = "triple_fault",
    Xsetbv = "xsetbv",
    CacheInvalidate = "cache_invalidate",
    VirtualizationInstruction = "virtualization_instruction",
    ControlRegister = "control_register",
    Init = "init",
    EntryFailure = "entry_failure",
    Unexpected = "unexpected",
    Eoi = "eoi",
    ShadowGate = "shadow_gate",
    Step = "step",
    TaskSwitch = "task_switch",
    BusLock = "bus_lock",
    DebugRegister = "debug_register",
}

impl Counter {
    /// The counter of an exit reason. A trapped EOI and a gate of the shadow IDT that was not
    /// present have counters of their own, which the handler names instead.
    #[inline(always)]
    #[must_use]
    pub const fn of(reason: &ExitReason) -> Self {
        match reason {
            ExitReason::Cpuid => Self::Cpuid,
            ExitReason::Io(_) => Self::Io,
            ExitReason::ReadMsr | ExitReason::WriteMsr | ExitReason::ApicWritten { .. } => {
                Self::Msr
            }
            ExitReason::DescriptorTable | ExitReason::LocalDescriptorTable => Self::DescriptorTable,
            ExitReason::NestedPageFault(_) => Self::NestedPageFault,
            ExitReason::Exception { .. } => Self::Exception,
            ExitReason::Nmi => Self::Nmi,
            ExitReason::ExternalInterrupt(_) => Self::ExternalInterrupt,
            ExitReason::LevelInterruptEnded(_) => Self::Eoi,
            ExitReason::InterruptWindow => Self::InterruptWindow,
            ExitReason::HostTimer => Self::PreemptionTimer,
            ExitReason::Halt => Self::Halt,
            ExitReason::TripleFault => Self::TripleFault,
            ExitReason::Xsetbv => Self::Xsetbv,
            ExitReason::CacheInvalidate => Self::CacheInvalidate,
            ExitReason::VirtualizationInstruction => Self::VirtualizationInstruction,
            ExitReason::ControlRegister(_) => Self::ControlRegister,
            ExitReason::Init => Self::Init,
            ExitReason::Step => Self::Step,
            ExitReason::TaskSwitch(_) => Self::TaskSwitch,
            ExitReason::BusLock => Self::BusLock,
            ExitReason::DebugRegister => Self::DebugRegister,
            ExitReason::EntryFailure(_) => Self::EntryFailure,
            ExitReason::Unexpected { .. } => Self::Unexpected,
        }
    }
}

/// One vCPU's exits. Each exit is counted once, under one counter.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ExitCounters([u64; COUNTERS]);

impl ExitCounters {
    /// All zero.
    #[must_use]
    pub const fn new() -> Self {
        Self([0; COUNTERS])
    }

    /// Counts one exit.
    pub fn count(&mut self, counter: Counter) {
        self.add(counter, 1);
    }

    /// Counts exits that a back end dealt with by itself.
    pub fn add(&mut self, counter: Counter, exits: u64) {
        // `Counter` has as many values as the array has places.
        if let Some(count) = self.0.get_mut(counter as usize) {
            *count = count.wrapping_add(exits);
        }
    }

    /// How many exits had that reason.
    #[must_use]
    pub fn get(&self, counter: Counter) -> u64 {
        self.0.get(counter as usize).copied().unwrap_or(0)
    }

    /// All exits.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().fold(0, |sum, count| sum.wrapping_add(*count))
    }

    /// The report of CPU `cpu` as one JSON object: the counters that are not zero, and always
    /// `external_interrupt` and `eoi`.
    #[must_use]
    pub const fn report(&self, cpu: u32) -> Report<'_> {
        Report { counters: self, cpu }
    }
}

/// Formats as `{"cpu":0,"exits":{"cpuid":3,"external_interrupt":0,"eoi":0}}`.
#[derive(Clone, Copy, Debug)]
pub struct Report<'a> {
    counters: &'a ExitCounters,
    cpu: u32,
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{\"cpu\":{},\"exits\":{{", self.cpu)?;
        let mut separator = "";
        for counter in Counter::ALL {
            let count = self.counters.get(counter);
            if count > 0 || matches!(counter, Counter::ExternalInterrupt | Counter::Eoi) {
                write!(f, "{separator}\"{}\":{count}", counter.key())?;
                separator = ",";
            }
        }
        f.write_str("}}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arch::Vector;
    use arch::exit::{
        ControlRegisterWrite, EntryFailure, IoAccess, NestedPageFault, TaskSwitch, TaskSwitchSource,
    };
    use arch::{Gpa, Width};

    #[test]
    fn the_report_names_what_occurred_and_always_interrupts_and_eoi() {
        let mut counters = ExitCounters::new();
        assert_eq!(
            counters.report(1).to_string(),
            r#"{"cpu":1,"exits":{"external_interrupt":0,"eoi":0}}"#
        );
        counters.count(Counter::Cpuid);
        counters.count(Counter::Cpuid);
        counters.count(Counter::ShadowGate);
        assert_eq!(
            counters.report(0).to_string(),
            r#"{"cpu":0,"exits":{"cpuid":2,"external_interrupt":0,"eoi":0,"shadow_gate":1}}"#
        );
        assert_eq!(counters.total(), 3);
    }

    #[test]
    fn the_places_of_the_guests_interface_stay() {
        let places = [("cpuid", 0), ("msr", 2), ("external_interrupt", 7), ("halt", 10)];
        for (key, place) in places.into_iter().chain([("eoi", 19), ("shadow_gate", 20)]) {
            assert_eq!(Counter::ALL[place].key(), key);
            assert_eq!(Counter::ALL[place] as usize, place);
        }
        assert_eq!(COUNTERS, 25);
    }

    #[test]
    fn every_reason_is_counted_under_its_own_key() {
        let vector = Vector(14);
        let reasons = [
            (ExitReason::Cpuid, "cpuid"),
            (
                ExitReason::Io(IoAccess {
                    port: 0,
                    width: Width::Byte,
                    input: true,
                    string: false,
                    repeat: false,
                    instruction_length: 1,
                }),
                "io",
            ),
            (ExitReason::ReadMsr, "msr"),
            (ExitReason::WriteMsr, "msr"),
            (ExitReason::DescriptorTable, "descriptor_table"),
            (ExitReason::LocalDescriptorTable, "descriptor_table"),
            (
                ExitReason::NestedPageFault(NestedPageFault {
                    gpa: Gpa::new(0),
                    write: false,
                    fetch: false,
                    table_walk: false,
                }),
                "nested_page_fault",
            ),
            (ExitReason::Exception { vector, error_code: None, qualification: 0 }, "exception"),
            (ExitReason::Nmi, "nmi"),
            (ExitReason::ExternalInterrupt(Some(vector)), "external_interrupt"),
            (ExitReason::InterruptWindow, "interrupt_window"),
            (ExitReason::HostTimer, "preemption_timer"),
            (ExitReason::Halt, "halt"),
            (ExitReason::TripleFault, "triple_fault"),
            (ExitReason::Xsetbv, "xsetbv"),
            (ExitReason::CacheInvalidate, "cache_invalidate"),
            (ExitReason::VirtualizationInstruction, "virtualization_instruction"),
            (
                ExitReason::ControlRegister(ControlRegisterWrite { register: 0, qualification: 0 }),
                "control_register",
            ),
            (ExitReason::Init, "init"),
            (ExitReason::Step, "step"),
            (
                ExitReason::TaskSwitch(TaskSwitch {
                    selector: Some(8),
                    source: TaskSwitchSource::Call,
                }),
                "task_switch",
            ),
            (ExitReason::BusLock, "bus_lock"),
            (ExitReason::DebugRegister, "debug_register"),
            (
                ExitReason::EntryFailure(EntryFailure { code: 0, qualification: 0, meaning: "" }),
                "entry_failure",
            ),
            (ExitReason::Unexpected { code: 0, qualification: 0 }, "unexpected"),
        ];
        for (reason, key) in reasons {
            assert_eq!(Counter::of(&reason).key(), key);
        }
    }
}
