//! The current VMCS, and the VMX instructions that touch it.
//!
//! Invariant: a [`Vmcs`] exists only on a CPU in VMX root operation that has this VMCS current, so
//! VMREAD and VMWRITE never fault. A field that the CPU refuses is our bug and panics.
//! The crate writes control and host-state fields only in `setup` (under the promises of
//! [`crate::VmxVcpu::new`]) and flips single control bits afterwards.

use core::arch::{asm, naked_asm};
use core::marker::PhantomData;

use arch::Hpa;

use crate::VmxError;
use crate::field::{Field, FieldWriter, Readable, VM_INSTRUCTION_ERROR, Width};

/// Proof that a VMCS is current on this CPU. Not `Send`: it stays on the CPU that made it. When it is
/// dropped the CPU has nothing of the VMCS left in a cache, and the frame is free again.
pub(crate) struct Vmcs {
    frame: Hpa,
    _this_cpu: PhantomData<*mut ()>,
}

impl Drop for Vmcs {
    fn drop(&mut self) {
        // SAFETY: `self` proves VMX root operation; its own frame. A failure changes nothing.
        unsafe { vmclear(self.frame) };
    }
}

impl Vmcs {
    /// Clears the VMCS in `frame` and makes it current.
    ///
    /// # Safety
    /// This CPU is in VMX root operation. `frame` is a 4 KiB page, identity-mapped, that belongs to
    /// this VMCS for as long as it lives, and no other [`Vmcs`] lives on this CPU.
    pub(crate) unsafe fn make_current(frame: Hpa, revision: u32) -> Result<Self, VmxError> {
        // SAFETY: the caller gives the frame.
        unsafe { initialize_region(frame, revision) };
        // SAFETY: VMX root operation, says the caller; the operand is a frame of its own.
        if unsafe { vmclear(frame) } {
            return Err(VmxError::Refused { instruction: "VMCLEAR", frame });
        }
        // SAFETY: as above.
        if unsafe { vmptrld(frame) } {
            return Err(VmxError::Refused { instruction: "VMPTRLD", frame });
        }
        Ok(Self { frame, _this_cpu: PhantomData })
    }

    /// VMREAD. Not tested for failure, as frequent exits read five fields: `self` is a current VMCS, and the
    /// fields that this crate reads are those of every CPU that [`crate::capability`] accepts.
    #[inline(always)]
    pub(crate) fn read<F: Readable>(&self, field: F) -> <F::Width as Width>::Value {
        let value: u64;
        // SAFETY: `self` proves VMX root operation with a current VMCS.
        unsafe {
            asm!(
                "vmread {value}, {field}",
                field = in(reg) u64::from(field.encoding()), value = lateout(reg) value,
                options(nostack, nomem)
            );
        }
        F::Width::narrow(value)
    }

    /// VMWRITE.
    #[inline(always)]
    pub(crate) fn write<W: Width>(&mut self, field: Field<W>, value: W::Value) {
        // SAFETY: `self` proves VMX root operation with a current VMCS; `refused` does not return.
        unsafe {
            asm!(
                "vmwrite rdi, {value}", "jna {refused}",
                in("rdi") u64::from(field.encoding()), value = in(reg) value.into(),
                refused = sym refused, options(nostack)
            );
        }
    }

    /// The number of the last VMX instruction's error.
    pub(crate) fn instruction_error(&self) -> u32 {
        self.read(VM_INSTRUCTION_ERROR)
    }
}

impl FieldWriter for Vmcs {
    #[inline(always)]
    fn write<W: Width>(&mut self, field: Field<W>, value: W::Value) {
        Self::write(self, field, value);
    }
}

/// Where a VMWRITE goes that fails: a jump, so that one which does not fail costs nothing more.
///
/// Contract: in RDI the field's encoding; the stack may be aligned in any way.
#[unsafe(naked)]
unsafe extern "sysv64" fn refused() {
    naked_asm!("and rsp, -16", "call {panic}", panic = sym panic_about)
}

#[cold]
extern "sysv64" fn panic_about(encoding: u32) -> ! {
    panic!("VMWRITE refused VMCS field {encoding:#06x}")
}

/// Fills a VMXON region or VMCS: zeros, and the revision identifier in the first four bytes
/// (SDM "Format of the VMCS Region").
///
/// # Safety
/// `frame` is an identity-mapped 4 KiB page that nothing else uses.
pub(crate) unsafe fn initialize_region(frame: Hpa, revision: u32) {
    let region = frame.as_u64() as *mut [u32; 1024];
    let mut content = [0; 1024];
    content[0] = revision;
    // SAFETY: the caller gives the page; physical addresses are the hypervisor's own.
    unsafe { region.write_volatile(content) };
}

macro_rules! frame_instruction {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        /// `true` where it fails.
        ///
        /// # Safety
        /// `frame` is a page set up for it, and the CPU is in the operation that the SDM asks for.
        pub(crate) unsafe fn $name(frame: Hpa) -> bool {
            let operand = frame.as_u64();
            let failed: u8;
            // SAFETY: the caller's promise.
            unsafe {
                asm!(
                    concat!(stringify!($name), " [{operand}]"), "setna {failed}",
                    operand = in(reg) &operand, failed = lateout(reg_byte) failed,
                    options(nostack)
                );
            }
            failed != 0
        }
    };
}
frame_instruction!(vmxon);
frame_instruction!(vmclear);
frame_instruction!(vmptrld);

/// Types of INVEPT and INVVPID that are used: single-context and all-context are the same numbers
/// for both (SDM "INVEPT—Invalidate Translations Derived from EPT").
pub(crate) const fn invalidation_type(single_context: bool) -> u64 {
    if single_context { 1 } else { 2 }
}

macro_rules! invalidate {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// The CPU is in VMX root operation and has the instruction with this type.
        pub(crate) unsafe fn $name(kind: u64, context: u64) {
            let descriptor = [context, 0];
            // SAFETY: the caller's promise. It cannot make memory wrong, only slow.
            unsafe {
                asm!(
                    concat!(stringify!($name), " {kind}, [{descriptor}]"),
                    kind = in(reg) kind, descriptor = in(reg) &descriptor,
                    options(nostack)
                );
            }
        }
    };
}
invalidate!(
    /// INVEPT; `context` is the EPT pointer.
    invept
);
invalidate!(
    /// INVVPID; `context` is the VPID.
    invvpid
);
