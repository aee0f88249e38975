//! The fields of a VMCS (SDM "Field Encoding in VMCS").
//!
//! Invariant: a field is an opaque type that knows its width and access, never a number: a value of
//! another width, or a write to a read-only field, does not compile, and an encoding whose width
//! bits or type bits say something else does not either.

use core::marker::PhantomData;

/// Width of a field, as bits 14:13 of its encoding tell it.
pub(crate) trait Width: Copy {
    /// Bits 14:13 of the encoding.
    const CODE: u32;
    /// What the field holds.
    type Value: Into<u64>;
    /// From the register that VMREAD has filled.
    fn narrow(raw: u64) -> Self::Value;
}

macro_rules! width {
    ($($(#[$doc:meta])* $name:ident: $value:ty = $code:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(crate) struct $name;
        impl Width for $name {
            const CODE: u32 = $code;
            type Value = $value;
            fn narrow(raw: u64) -> $value {
                raw as $value
            }
        }
    )*};
}
width! {
    /// 16 bits.
    W16: u16 = 0;
    /// 64 bits.
    W64: u64 = 1;
    /// 32 bits.
    W32: u32 = 2;
    /// 64 bits on a CPU with Intel 64.
    Natural: u64 = 3;
}

/// Type of the VM-exit information fields, in bits 11:10 of the encoding: they cannot be written.
const EXIT_INFORMATION: u32 = 1;

/// A field that can be read and written.
#[derive(Clone, Copy)]
pub(crate) struct Field<W>(u32, PhantomData<W>);

/// A field that can be read only.
#[derive(Clone, Copy)]
pub(crate) struct ReadOnly<W>(u32, PhantomData<W>);

impl<W: Width> Field<W> {
    const fn new(encoding: u32) -> Self {
        assert!(encoding >> 13 & 3 == W::CODE && encoding >> 10 & 3 != EXIT_INFORMATION);
        Self(encoding, PhantomData)
    }

    /// Its encoding, for assembly.
    pub(crate) const fn number(self) -> u32 {
        self.0
    }

    /// The field `index` places behind this one in a run of the same kind (ES, CS, SS …).
    pub(crate) const fn nth(self, index: u32) -> Self {
        Self(self.0 + 2 * index, PhantomData)
    }
}

impl<W: Width> ReadOnly<W> {
    const fn new(encoding: u32) -> Self {
        assert!(encoding >> 13 & 3 == W::CODE && encoding >> 10 & 3 == EXIT_INFORMATION);
        Self(encoding, PhantomData)
    }

    /// Its encoding, for assembly.
    pub(crate) const fn number(self) -> u32 {
        self.0
    }
}

/// Whatever VMREAD can read.
pub(crate) trait Readable {
    type Width: Width;
    fn encoding(&self) -> u32;
}

impl<W: Width> Readable for Field<W> {
    type Width = W;
    fn encoding(&self) -> u32 {
        self.0
    }
}

impl<W: Width> Readable for ReadOnly<W> {
    type Width = W;
    fn encoding(&self) -> u32 {
        self.0
    }
}

/// Where fields are written: the current VMCS, or what stands for it in a test.
pub(crate) trait FieldWriter {
    /// VMWRITE.
    fn write<W: Width>(&mut self, field: Field<W>, value: W::Value);
}

macro_rules! fields {
    ($($access:ident<$width:ident> { $($name:ident = $encoding:literal,)* })*) => {
        $($(pub(crate) const $name: $access<$width> = $access::new($encoding);)*)*
    };
}

fields! {
    Field<W16> {
        VIRTUAL_PROCESSOR_IDENTIFIER = 0x0000,
        POSTED_INTERRUPT_NOTIFICATION_VECTOR = 0x0002,
        LAST_PID_POINTER_INDEX = 0x0008,
        GUEST_ES_SELECTOR = 0x0800, // CS, SS, DS, FS, GS, LDTR, TR follow
        GUEST_INTERRUPT_STATUS = 0x0810,
        HOST_ES_SELECTOR = 0x0c00,
        HOST_CS_SELECTOR = 0x0c02,
        HOST_SS_SELECTOR = 0x0c04,
        HOST_DS_SELECTOR = 0x0c06,
        HOST_FS_SELECTOR = 0x0c08,
        HOST_GS_SELECTOR = 0x0c0a,
        HOST_TR_SELECTOR = 0x0c0c,
    }
    Field<W64> {
        ADDRESS_OF_IO_BITMAP_A = 0x2000,
        ADDRESS_OF_IO_BITMAP_B = 0x2002,
        ADDRESS_OF_MSR_BITMAPS = 0x2004,
        VM_EXIT_MSR_STORE_ADDRESS = 0x2006,
        VM_EXIT_MSR_LOAD_ADDRESS = 0x2008,
        VM_ENTRY_MSR_LOAD_ADDRESS = 0x200a,
        TSC_OFFSET = 0x2010,
        VIRTUAL_APIC_ADDRESS = 0x2012,
        POSTED_INTERRUPT_DESCRIPTOR_ADDRESS = 0x2016,
        EPT_POINTER = 0x201a,
        EOI_EXIT_BITMAP_0 = 0x201c, // 1 to 3 follow
        XSS_EXITING_BITMAP = 0x202c,
        TERTIARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS = 0x2034,
        PID_POINTER_TABLE_ADDRESS = 0x2042,
        VMCS_LINK_POINTER = 0x2800,
        GUEST_IA32_DEBUGCTL = 0x2802,
        GUEST_IA32_PAT = 0x2804,
        GUEST_IA32_EFER = 0x2806,
        GUEST_PDPTE0 = 0x280a, // 1 to 3 follow
        HOST_IA32_PAT = 0x2c00,
        HOST_IA32_EFER = 0x2c02,
    }
    ReadOnly<W64> {
        GUEST_PHYSICAL_ADDRESS = 0x2400,
    }
    Field<W32> {
        PIN_BASED_VM_EXECUTION_CONTROLS = 0x4000,
        PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS = 0x4002,
        EXCEPTION_BITMAP = 0x4004,
        PAGE_FAULT_ERROR_CODE_MASK = 0x4006,
        PAGE_FAULT_ERROR_CODE_MATCH = 0x4008,
        CR3_TARGET_COUNT = 0x400a,
        VM_EXIT_CONTROLS = 0x400c,
        VM_EXIT_MSR_STORE_COUNT = 0x400e,
        VM_EXIT_MSR_LOAD_COUNT = 0x4010,
        VM_ENTRY_CONTROLS = 0x4012,
        VM_ENTRY_MSR_LOAD_COUNT = 0x4014,
        VM_ENTRY_INTERRUPTION_INFORMATION = 0x4016,
        VM_ENTRY_EXCEPTION_ERROR_CODE = 0x4018,
        VM_ENTRY_INSTRUCTION_LENGTH = 0x401a,
        TPR_THRESHOLD = 0x401c,
        SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS = 0x401e,
        GUEST_ES_LIMIT = 0x4800, // CS, SS, DS, FS, GS, LDTR, TR follow
        GUEST_GDTR_LIMIT = 0x4810,
        GUEST_IDTR_LIMIT = 0x4812,
        GUEST_ES_ACCESS_RIGHTS = 0x4814, // CS, SS, DS, FS, GS, LDTR, TR follow
        GUEST_INTERRUPTIBILITY_STATE = 0x4824,
        GUEST_ACTIVITY_STATE = 0x4826,
        GUEST_IA32_SYSENTER_CS = 0x482a,
        VMX_PREEMPTION_TIMER_VALUE = 0x482e,
        HOST_IA32_SYSENTER_CS = 0x4c00,
    }
    ReadOnly<W32> {
        VM_INSTRUCTION_ERROR = 0x4400,
        EXIT_REASON = 0x4402,
        VM_EXIT_INTERRUPTION_INFORMATION = 0x4404,
        VM_EXIT_INTERRUPTION_ERROR_CODE = 0x4406,
        IDT_VECTORING_INFORMATION = 0x4408,
        IDT_VECTORING_ERROR_CODE = 0x440a,
        VM_EXIT_INSTRUCTION_LENGTH = 0x440c,
    }
    Field<Natural> {
        CR0_GUEST_HOST_MASK = 0x6000,
        CR4_GUEST_HOST_MASK = 0x6002,
        CR0_READ_SHADOW = 0x6004,
        CR4_READ_SHADOW = 0x6006,
        GUEST_CR0 = 0x6800,
        GUEST_CR3 = 0x6802,
        GUEST_CR4 = 0x6804,
        GUEST_ES_BASE = 0x6806, // CS, SS, DS, FS, GS, LDTR, TR follow
        GUEST_GDTR_BASE = 0x6816,
        GUEST_IDTR_BASE = 0x6818,
        GUEST_DR7 = 0x681a,
        GUEST_RSP = 0x681c,
        GUEST_RIP = 0x681e,
        GUEST_RFLAGS = 0x6820,
        GUEST_PENDING_DEBUG_EXCEPTIONS = 0x6822,
        GUEST_IA32_SYSENTER_ESP = 0x6824,
        GUEST_IA32_SYSENTER_EIP = 0x6826,
        HOST_CR0 = 0x6c00,
        HOST_CR3 = 0x6c02,
        HOST_CR4 = 0x6c04,
        HOST_FS_BASE = 0x6c06,
        HOST_GS_BASE = 0x6c08,
        HOST_TR_BASE = 0x6c0a,
        HOST_GDTR_BASE = 0x6c0c,
        HOST_IDTR_BASE = 0x6c0e,
        HOST_IA32_SYSENTER_ESP = 0x6c10,
        HOST_IA32_SYSENTER_EIP = 0x6c12,
        HOST_RSP = 0x6c14,
        HOST_RIP = 0x6c16,
    }
    ReadOnly<Natural> {
        EXIT_QUALIFICATION = 0x6400,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arch::segment::SegmentRegister;

    #[test]
    fn segment_runs_end_where_the_manual_puts_tr() {
        let last = SegmentRegister::Tr as u32;
        assert_eq!(GUEST_ES_SELECTOR.nth(last).encoding(), 0x80e);
        assert_eq!(GUEST_ES_LIMIT.nth(last).encoding(), 0x480e);
        assert_eq!(GUEST_ES_ACCESS_RIGHTS.nth(last).encoding(), 0x4822);
        assert_eq!(GUEST_ES_BASE.nth(last).encoding(), 0x6814);
    }
}
