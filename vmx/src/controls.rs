//! The VM-execution, VM-exit and VM-entry controls.
//!
//! Invariant: a control word has every bit that the CPU wants set, no bit that it does not know, and
//! every bit that Nexit needs; else there is no word but an error that names the bit. Pure.

use arch::vcpu::{InterruptMode, Withheld, exception};
use bitflags::{Flags, bitflags};

use crate::VmxError;
use crate::capability::Capabilities;
use crate::error::MissingControl;

bitflags! {
    /// SDM "Pin-Based VM-Execution Controls".
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct PinBased: u32 {
        /// An external interrupt exits.
        const EXTERNAL_INTERRUPT_EXITING = 1 << 0;
        /// An NMI exits.
        const NMI_EXITING = 1 << 3;
        /// The guest has NMI blocking of its own.
        const VIRTUAL_NMIS = 1 << 5;
        /// The timer runs in the guest and exits at 0.
        const ACTIVATE_VMX_PREEMPTION_TIMER = 1 << 6;
        /// The notification vector does not exit: the CPU delivers what is posted.
        const PROCESS_POSTED_INTERRUPTS = 1 << 7;
        const _ = !0;
    }

    /// SDM "Processor-Based VM-Execution Controls", primary.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Primary: u32 {
        /// Exit as soon as the guest can take an interrupt.
        const INTERRUPT_WINDOW_EXITING = 1 << 2;
        /// HLT exits.
        const HLT_EXITING = 1 << 7;
        /// INVLPG exits.
        const INVLPG_EXITING = 1 << 9;
        /// MWAIT exits.
        const MWAIT_EXITING = 1 << 10;
        /// RDPMC exits.
        const RDPMC_EXITING = 1 << 11;
        /// RDTSC and RDTSCP exit.
        const RDTSC_EXITING = 1 << 12;
        /// MOV to CR3 exits.
        const CR3_LOAD_EXITING = 1 << 15;
        /// MOV from CR3 exits.
        const CR3_STORE_EXITING = 1 << 16;
        /// MOV to CR8 exits.
        const CR8_LOAD_EXITING = 1 << 19;
        /// MOV from CR8 exits.
        const CR8_STORE_EXITING = 1 << 20;
        /// The tertiary controls count.
        const ACTIVATE_TERTIARY_CONTROLS = 1 << 17;
        /// CR8 is the virtual APIC's TPR.
        const USE_TPR_SHADOW = 1 << 21;
        /// Exit as soon as the guest can take an NMI.
        const NMI_WINDOW_EXITING = 1 << 22;
        /// Every access to a debug register exits.
        const MOV_DR_EXITING = 1 << 23;
        /// Ports exit as the bitmaps say.
        const USE_IO_BITMAPS = 1 << 25;
        /// MSRs exit as the bitmaps say.
        const USE_MSR_BITMAPS = 1 << 28;
        /// MONITOR exits.
        const MONITOR_EXITING = 1 << 29;
        /// PAUSE exits.
        const PAUSE_EXITING = 1 << 30;
        /// The secondary controls count.
        const ACTIVATE_SECONDARY_CONTROLS = 1 << 31;
        const _ = !0;
    }

    /// SDM "Processor-Based VM-Execution Controls", secondary.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Secondary: u32 {
        /// Extended page tables.
        const ENABLE_EPT = 1 << 1;
        /// LGDT, LIDT, LLDT, LTR, SGDT, SIDT, SLDT and STR exit.
        const DESCRIPTOR_TABLE_EXITING = 1 << 2;
        /// RDTSCP works.
        const ENABLE_RDTSCP = 1 << 3;
        /// MSRs 0x800 to 0x8FF that pass are the virtual APIC's.
        const VIRTUALIZE_X2APIC_MODE = 1 << 4;
        /// Translations are tagged.
        const ENABLE_VPID = 1 << 5;
        /// WBINVD and WBNOINVD exit.
        const WBINVD_EXITING = 1 << 6;
        /// Real mode and protected mode without paging work.
        const UNRESTRICTED_GUEST = 1 << 7;
        /// All of the virtual APIC can be read.
        const APIC_REGISTER_VIRTUALIZATION = 1 << 8;
        /// The CPU delivers and ends the guest's interrupts.
        const VIRTUAL_INTERRUPT_DELIVERY = 1 << 9;
        /// INVPCID works.
        const ENABLE_INVPCID = 1 << 12;
        /// XSAVES and XRSTORS work.
        const ENABLE_XSAVES = 1 << 20;
        /// UMWAIT and TPAUSE work.
        const ENABLE_USER_WAIT_AND_PAUSE = 1 << 26;
        /// A bus lock exits behind its instruction.
        const VMM_BUS_LOCK_DETECTION = 1 << 30;
        const _ = !0;
    }

    /// SDM "VM-Exit Controls", primary.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct ExitControls: u32 {
        /// DR7 and IA32_DEBUGCTL are saved.
        const SAVE_DEBUG_CONTROLS = 1 << 2;
        /// The host is 64-bit.
        const HOST_ADDRESS_SPACE_SIZE = 1 << 9;
        /// The interrupt that exits is acknowledged at the local APIC.
        const ACKNOWLEDGE_INTERRUPT_ON_EXIT = 1 << 15;
        /// The guest's IA32_PAT is saved.
        const SAVE_IA32_PAT = 1 << 18;
        /// The host's IA32_PAT is loaded.
        const LOAD_IA32_PAT = 1 << 19;
        /// The guest's IA32_EFER is saved.
        const SAVE_IA32_EFER = 1 << 20;
        /// The host's IA32_EFER is loaded.
        const LOAD_IA32_EFER = 1 << 21;
        /// The preemption timer's count is saved, so that it goes on and does not start again.
        const SAVE_VMX_PREEMPTION_TIMER_VALUE = 1 << 22;
        const _ = !0;
    }

    /// SDM "VM-Entry Controls".
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct EntryControls: u32 {
        /// DR7 and IA32_DEBUGCTL are loaded.
        const LOAD_DEBUG_CONTROLS = 1 << 2;
        /// The guest is in IA-32e mode (EFER.LMA = 1) after the entry.
        const IA32E_MODE_GUEST = 1 << 9;
        /// The guest's IA32_PAT is loaded.
        const LOAD_IA32_PAT = 1 << 14;
        /// The guest's IA32_EFER is loaded.
        const LOAD_IA32_EFER = 1 << 15;
        const _ = !0;
    }
}

/// The controls that are switched on and off while the guest runs: the CPU must offer them, but they
/// start off.
pub(crate) const SWITCHED: Primary =
    INTERRUPT_WINDOW.union(Primary::NMI_WINDOW_EXITING).union(Primary::MOV_DR_EXITING);

/// What is on while an interrupt waits for its window: see [`arch::vcpu::Vcpu::set_interrupt_window`].
pub(crate) const INTERRUPT_WINDOW: Primary =
    Primary::INTERRUPT_WINDOW_EXITING.union(Primary::HLT_EXITING);

/// What must never exit.
const NEVER: Primary = Primary::INVLPG_EXITING
    .union(Primary::MWAIT_EXITING)
    .union(Primary::RDPMC_EXITING)
    .union(Primary::RDTSC_EXITING)
    .union(Primary::CR3_LOAD_EXITING)
    .union(Primary::CR3_STORE_EXITING)
    .union(Primary::CR8_LOAD_EXITING)
    .union(Primary::CR8_STORE_EXITING)
    .union(Primary::MONITOR_EXITING)
    .union(Primary::PAUSE_EXITING);

/// A full set of control words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Controls {
    pub pin_based: PinBased,
    /// Primary processor-based.
    pub primary: Primary,
    /// Secondary processor-based.
    pub secondary: Secondary,
    /// Tertiary processor-based: 0 or [`IPI_VIRTUALIZATION`].
    pub tertiary: u64,
    /// VM exit.
    pub exit: ExitControls,
    /// VM entry.
    pub entry: EntryControls,
}

/// The word with all of `wanted`, what the CPU can of `optional`, and what the CPU insists on
/// (SDM "Algorithms for Determining VMX Capabilities": the low half of a capability MSR has the bits
/// that must be 1, the high half those that may be 1).
///
/// # Errors
/// The wanted bits that the CPU cannot set.
pub const fn adjust(wanted: u32, optional: u32, capability: u64) -> Result<u32, u32> {
    let (must, may) = (capability as u32, (capability >> 32) as u32);
    let missing = wanted & !may;
    if missing != 0 {
        return Err(missing);
    }
    Ok(wanted | optional & may | must)
}

/// [`adjust`] with names.
fn adjust_named<F: Flags<Bits = u32>>(
    wanted: F,
    optional: F,
    register: &'static str,
    capability: u64,
) -> Result<F, VmxError> {
    adjust(wanted.bits(), optional.bits(), capability).map(F::from_bits_retain).map_err(|missing| {
        let control = first_name(&F::from_bits_retain(missing));
        VmxError::MissingControl(MissingControl { control, register, capability })
    })
}

fn first_name<F: Flags>(flags: &F) -> &'static str {
    flags.iter_names().next().map_or("reserved control", |(name, _)| name)
}

impl Controls {
    /// The controls for `mode` on this CPU.
    ///
    /// # Errors
    /// The first control that is needed and cannot be set, or exits too much and cannot be cleared.
    pub fn choose(capabilities: &Capabilities, mode: InterruptMode) -> Result<Self, VmxError> {
        let (exiting, posted) = (!mode.is_exitless(), mode == InterruptMode::Posted);
        let mut pin_based = PinBased::NMI_EXITING | PinBased::VIRTUAL_NMIS;
        pin_based.set(PinBased::EXTERNAL_INTERRUPT_EXITING, exiting);
        // Without it the guest's CPUs interrupt each other with an exit.
        let posting = if posted { PinBased::PROCESS_POSTED_INTERRUPTS } else { PinBased::empty() };
        let mut secondary = Secondary::ENABLE_EPT | Secondary::UNRESTRICTED_GUEST;
        secondary.set(VIRTUAL_APIC, posted);
        // Only the shadow IDT needs to know where the guest's IDT is.
        secondary.set(Secondary::DESCRIPTOR_TABLE_EXITING, !exiting);
        let mut optional = Secondary::WBINVD_EXITING
            | Secondary::ENABLE_RDTSCP
            | Secondary::ENABLE_INVPCID
            | Secondary::ENABLE_XSAVES
            | Secondary::ENABLE_USER_WAIT_AND_PAUSE
            | Secondary::VMM_BUS_LOCK_DETECTION;
        optional.set(Secondary::ENABLE_VPID, capabilities.invvpid());
        let mut exit = ExitControls::SAVE_DEBUG_CONTROLS
            | ExitControls::HOST_ADDRESS_SPACE_SIZE
            | ExitControls::SAVE_IA32_PAT
            | ExitControls::LOAD_IA32_PAT
            | ExitControls::SAVE_IA32_EFER
            | ExitControls::LOAD_IA32_EFER;
        exit.set(ExitControls::ACKNOWLEDGE_INTERRUPT_ON_EXIT, exiting);
        let entry = EntryControls::LOAD_DEBUG_CONTROLS
            | EntryControls::IA32E_MODE_GUEST
            | EntryControls::LOAD_IA32_PAT
            | EntryControls::LOAD_IA32_EFER;
        let pin_based =
            adjust_named(pin_based, posting, "IA32_VMX_PINBASED_CTLS", capabilities.pin_based)?;
        // What it posts, the receiver must take.
        let posts = posted && pin_based.contains(PinBased::PROCESS_POSTED_INTERRUPTS);
        let tertiary = if posts { capabilities.tertiary & IPI_VIRTUALIZATION } else { 0 };
        // Before the primary ones: a CPU without EPT cannot switch CR3's exits off, which says less.
        let secondary =
            adjust_named(secondary, optional, "IA32_VMX_PROCBASED_CTLS2", capabilities.secondary)?;
        Ok(Self {
            pin_based,
            primary: choose_primary(capabilities.primary, mode, tertiary != 0)?,
            tertiary,
            secondary,
            exit: adjust_named(
                exit,
                ExitControls::empty(),
                "IA32_VMX_EXIT_CTLS",
                capabilities.exit,
            )?,
            entry: adjust_named(
                entry,
                EntryControls::empty(),
                "IA32_VMX_ENTRY_CTLS",
                capabilities.entry,
            )?
            .difference(EntryControls::IA32E_MODE_GUEST),
        })
    }

    /// The two controls of the preemption timer, switched on or off together: the count must not be saved
    /// without the timer (SDM "VM-Exit Control Fields"). On a CPU that cannot save it (`saves`), the timer starts
    /// again at each entry.
    #[must_use]
    pub const fn preemption_timer(
        pin_based: PinBased,
        exit: ExitControls,
        saves: bool,
        on: bool,
    ) -> (PinBased, ExitControls) {
        const TIMER: PinBased = PinBased::ACTIVATE_VMX_PREEMPTION_TIMER;
        const SAVE: ExitControls = ExitControls::SAVE_VMX_PREEMPTION_TIMER_VALUE;
        (
            if on { pin_based.union(TIMER) } else { pin_based.difference(TIMER) },
            if on && saves { exit.union(SAVE) } else { exit.difference(SAVE) },
        )
    }

    /// The instructions that the CPU lets no guest execute: each needs a control, which a hypervisor beneath may not
    /// offer.
    #[must_use]
    pub const fn withheld(&self) -> Withheld {
        Withheld {
            rdtscp: !self.secondary.contains(Secondary::ENABLE_RDTSCP),
            invpcid: !self.secondary.contains(Secondary::ENABLE_INVPCID),
            xsaves: !self.secondary.contains(Secondary::ENABLE_XSAVES),
        }
    }

    /// The CPU sends IPIs by itself, and a guest's writes to ICR may pass.
    #[must_use]
    pub const fn virtualizes_ipis(&self) -> bool {
        self.tertiary != 0
    }
}

/// The exception bitmap (SDM "Exception Bitmap"): what exits always, and what else is to.
pub(crate) const fn exception_bitmap(besides: u32) -> u32 {
    exception::ALWAYS_EXIT | besides
}

/// Tertiary processor-based VM-execution control: the CPU posts IPIs to CPUs that the PID-pointer table names.
pub const IPI_VIRTUALIZATION: u64 = 1 << 4;

/// The CPU does a local APIC's work for the guest.
const VIRTUAL_APIC: Secondary = Secondary::VIRTUALIZE_X2APIC_MODE
    .union(Secondary::APIC_REGISTER_VIRTUALIZATION)
    .union(Secondary::VIRTUAL_INTERRUPT_DELIVERY);

fn choose_primary(
    capability: u64,
    mode: InterruptMode,
    tertiary: bool,
) -> Result<Primary, VmxError> {
    const REGISTER: &str = "IA32_VMX_PROCBASED_CTLS";
    let mut wanted = Primary::USE_IO_BITMAPS
        | Primary::USE_MSR_BITMAPS
        | Primary::ACTIVATE_SECONDARY_CONTROLS
        | SWITCHED;
    wanted.set(Primary::USE_TPR_SHADOW, mode != InterruptMode::Exitless);
    wanted.set(Primary::ACTIVATE_TERTIARY_CONTROLS, tertiary);
    let primary = adjust_named(wanted, Primary::empty(), REGISTER, capability)?;
    let insisted = Primary::from_bits_retain(capability as u32).intersection(NEVER.union(SWITCHED));
    if insisted.is_empty() {
        return Ok(primary.difference(SWITCHED));
    }
    let control = first_name(&insisted);
    Err(VmxError::ForcedControl(MissingControl { control, register: REGISTER, capability }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capability::tests::SKYLAKE;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_adjusted_word_is_one_that_the_cpu_takes(
            wanted: u32, optional: u32, must: u32, may: u32,
        ) {
            let may = may | must;
            match adjust(wanted, optional, u64::from(may) << 32 | u64::from(must)) {
                Ok(word) => {
                    prop_assert_eq!(word & must, must, "what must be 1 is 1");
                    prop_assert_eq!(word & !may, 0, "what must be 0 is 0");
                    prop_assert_eq!(word & wanted, wanted, "what is wanted is there");
                    prop_assert_eq!(word & !(wanted | optional | must), 0, "and nothing else");
                }
                Err(missing) => {
                    prop_assert_ne!(missing, 0);
                    prop_assert_eq!(missing, wanted & !may);
                }
            }
        }
    }

    #[test]
    fn debug_and_alignment_exceptions_and_machine_checks_exit_whatever_else_does() {
        let always = 1 << 1 | 1 << 17 | 1 << 18;
        for besides in [0, 1 << 11, 1 << 11 | 1 << 13] {
            assert_eq!(exception_bitmap(besides), always | besides);
        }
    }

    #[test]
    fn interrupts_exit_only_in_the_exiting_mode() {
        let exitless = Controls::choose(&SKYLAKE, InterruptMode::Exitless).unwrap();
        let exiting = Controls::choose(&SKYLAKE, InterruptMode::Exiting).unwrap();
        assert!(!exitless.pin_based.contains(PinBased::EXTERNAL_INTERRUPT_EXITING));
        assert!(!exitless.exit.contains(ExitControls::ACKNOWLEDGE_INTERRUPT_ON_EXIT));
        assert!(exiting.pin_based.contains(PinBased::EXTERNAL_INTERRUPT_EXITING));
        assert!(exiting.exit.contains(ExitControls::ACKNOWLEDGE_INTERRUPT_ON_EXIT));
        assert!(exitless.secondary.contains(Secondary::DESCRIPTOR_TABLE_EXITING));
        assert!(!exiting.secondary.contains(Secondary::DESCRIPTOR_TABLE_EXITING));
    }

    #[test]
    fn the_posted_mode_needs_virtual_interrupt_delivery_and_takes_posting_where_it_is() {
        use crate::capability::Capabilities;
        let posted =
            |capabilities: &Capabilities| Controls::choose(capabilities, InterruptMode::Posted);
        let server = Capabilities { secondary: SKYLAKE.secondary | 3 << 40, ..SKYLAKE };
        let controls = posted(&server).unwrap();
        assert!(controls.secondary.contains(VIRTUAL_APIC));
        assert!(controls.primary.contains(Primary::USE_TPR_SHADOW));
        assert!(controls.pin_based.contains(PinBased::EXTERNAL_INTERRUPT_EXITING));
        assert!(!controls.pin_based.contains(PinBased::PROCESS_POSTED_INTERRUPTS), "it has none");
        let pin_based = SKYLAKE.pin_based | 1 << 39;
        let newer = posted(&Capabilities { pin_based, ..server }).unwrap();
        assert!(newer.pin_based.contains(PinBased::PROCESS_POSTED_INTERRUPTS));
        assert!(!newer.virtualizes_ipis() && newer.tertiary == 0, "it has none");
        let (primary, tertiary) = (SKYLAKE.primary | 1 << 49, 0x93);
        let newest = Capabilities { pin_based, primary, tertiary, ..server };
        let controls = posted(&newest).unwrap();
        assert!(controls.virtualizes_ipis());
        assert_eq!((controls.primary.bits() >> 17 & 1, controls.tertiary), (1, 1 << 4));
        let silent = Capabilities { pin_based: SKYLAKE.pin_based, ..newest };
        for (capabilities, mode) in [
            (newest, InterruptMode::Exiting),
            (newest, InterruptMode::Exitless),
            (silent, InterruptMode::Posted),
        ] {
            let without = Controls::choose(&capabilities, mode).unwrap();
            assert_eq!((without.primary.bits() >> 17 & 1, without.tertiary), (0, 0));
        }
        let older = Capabilities { secondary: server.secondary & !(1 << 41), ..SKYLAKE };
        assert!(matches!(
            posted(&older),
            Err(VmxError::MissingControl(missing)) if missing.control == "VIRTUAL_INTERRUPT_DELIVERY"
        ));
        assert!(Controls::choose(&older, InterruptMode::Exitless).is_ok());
    }

    #[test]
    fn an_instruction_whose_control_is_missing_is_withheld() {
        let withheld = |bits: u32| {
            let secondary = SKYLAKE.secondary & !(u64::from(bits) << 32);
            let capabilities = crate::capability::Capabilities { secondary, ..SKYLAKE };
            Controls::choose(&capabilities, InterruptMode::Exitless).unwrap().withheld()
        };
        assert_eq!(withheld(0), Withheld::default());
        assert_eq!(withheld(1 << 3), Withheld { rdtscp: true, ..Withheld::default() });
        assert_eq!(withheld(1 << 12), Withheld { invpcid: true, ..Withheld::default() });
        assert_eq!(withheld(1 << 20), Withheld { xsaves: true, ..Withheld::default() });
    }

    #[test]
    fn the_words_are_those_that_the_manual_spells() {
        let controls = Controls::choose(&SKYLAKE, InterruptMode::Exitless).unwrap();
        assert_eq!(controls.pin_based.bits(), 0x3e);
        assert_eq!(controls.primary.bits(), 0x9600_6172);
        assert_eq!(controls.secondary.bits(), 0x0010_10ee);
        assert_eq!(controls.exit.bits(), 0x003f_6fff);
        assert_eq!(controls.entry.bits(), 0x0000_d1ff);
    }

    #[test]
    fn hlt_and_windows_start_off_and_nothing_frequent_exits() {
        let primary = Controls::choose(&SKYLAKE, InterruptMode::Exiting).unwrap().primary;
        assert!(!primary.intersects(SWITCHED));
        assert!(!primary.intersects(NEVER));
    }

    #[test]
    fn while_an_interrupt_waits_a_halt_exits() {
        assert!(INTERRUPT_WINDOW.contains(Primary::HLT_EXITING));
        assert!(SWITCHED.contains(INTERRUPT_WINDOW), "off at the start, and the CPU must have it");
    }
}
