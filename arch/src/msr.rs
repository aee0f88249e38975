//! Model-specific registers by the manuals' names
//! (SDM volume 4; APM volume 2 "Model-Specific Registers (MSRs)").

macro_rules! msrs {
    ($($name:ident = $number:literal),* $(,)?) => {
        $(#[doc = concat!("`", stringify!($name), "`")] pub const $name: u32 = $number;)*
    };
}

msrs! {
    IA32_TIME_STAMP_COUNTER = 0x10,
    IA32_APIC_BASE = 0x1b,
    IA32_FEATURE_CONTROL = 0x3a,
    IA32_TSC_ADJUST = 0x3b,
    IA32_SPEC_CTRL = 0x48,
    IA32_BIOS_SIGN_ID = 0x8b,
    MPERF = 0xe7,
    APERF = 0xe8,
    IA32_MTRRCAP = 0xfe,
    IA32_ARCH_CAPABILITIES = 0x10a,
    IA32_SYSENTER_CS = 0x174,
    IA32_SYSENTER_ESP = 0x175,
    IA32_SYSENTER_EIP = 0x176,
    IA32_MCG_CAP = 0x179,
    IA32_MCG_STATUS = 0x17a,
    IA32_MISC_ENABLE = 0x1a0,
    IA32_DEBUGCTL = 0x1d9,
    IA32_PAT = 0x277,
    IA32_MTRR_DEF_TYPE = 0x2ff,
    IA32_MC0_STATUS = 0x401,
    IA32_TSC_DEADLINE = 0x6e0,
    IA32_X2APIC_APICID = 0x802,
    IA32_X2APIC_VERSION = 0x803,
    IA32_X2APIC_TPR = 0x808,
    IA32_X2APIC_PPR = 0x80a,
    IA32_X2APIC_EOI = 0x80b,
    IA32_X2APIC_LDR = 0x80d,
    IA32_X2APIC_SIVR = 0x80f,
    IA32_X2APIC_ISR0 = 0x810,
    IA32_X2APIC_TMR0 = 0x818,
    IA32_X2APIC_IRR0 = 0x820,
    IA32_X2APIC_ESR = 0x828,
    IA32_X2APIC_LVT_CMCI = 0x82f,
    IA32_X2APIC_ICR = 0x830,
    IA32_X2APIC_LVT_TIMER = 0x832,
    IA32_X2APIC_LVT_THERMAL = 0x833,
    IA32_X2APIC_LVT_PMI = 0x834,
    IA32_X2APIC_LVT_LINT0 = 0x835,
    IA32_X2APIC_LVT_LINT1 = 0x836,
    IA32_X2APIC_LVT_ERROR = 0x837,
    IA32_X2APIC_INIT_COUNT = 0x838,
    IA32_X2APIC_CUR_COUNT = 0x839,
    IA32_X2APIC_DIV_CONF = 0x83e,
    IA32_X2APIC_SELF_IPI = 0x83f,
    IA32_XSS = 0xda0,
    IA32_EFER = 0xc000_0080,
    IA32_STAR = 0xc000_0081,
    IA32_LSTAR = 0xc000_0082,
    IA32_CSTAR = 0xc000_0083,
    IA32_FMASK = 0xc000_0084,
    IA32_FS_BASE = 0xc000_0100,
    IA32_GS_BASE = 0xc000_0101,
    IA32_KERNEL_GS_BASE = 0xc000_0102,
    IA32_TSC_AUX = 0xc000_0103,
    VM_CR = 0xc001_0114,
    VM_HSAVE_PA = 0xc001_0117,
}

/// The MSRs of x2APIC mode (SDM "x2APIC Register Address Space").
pub const X2APIC_MSRS: core::ops::RangeInclusive<u32> = 0x800..=0x8ff;

/// A run of MSRs that a guest may read or write without an exit. What no run names traps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MsrPass {
    /// First MSR.
    pub first: u32,
    /// Last MSR (inclusive).
    pub last: u32,
    /// Reads do not exit.
    pub read: bool,
    /// Writes do not exit.
    pub write: bool,
}

impl MsrPass {
    /// Whether these are MSRs of x2APIC mode.
    #[must_use]
    pub fn is_of_x2apic(&self) -> bool {
        X2APIC_MSRS.contains(&self.first)
    }
}

/// A run of I/O ports that a guest may use without an exit. What no run names traps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct PortRange {
    /// First port.
    pub first: u16,
    /// Last port (inclusive).
    pub last: u16,
}

impl PortRange {
    /// Whether the two share a port.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// Whether `port` lies in the run.
    #[must_use]
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}
