//! The physical machine as one guest's policy may use it.
//!
//! `guest` and `eli` decide; whatever they want done to the machine goes through [`Machine`], which
//! the kernel implements for the image and a scripted fake implements for host tests.

use core::fmt;
use core::sync::atomic::AtomicU8;

use crate::address::Gpa;
use crate::bdf::Bdf;
use crate::interrupt::{ApicId, InterruptTarget, MsiMessage, Vector};
use crate::machine_check::MachineCheck;

/// Width of an access.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Width {
    /// 1 byte.
    Byte = 1,
    /// 2 bytes.
    Word = 2,
    /// 4 bytes.
    Dword = 4,
    /// 8 bytes.
    Qword = 8,
}

impl Width {
    /// Number of bytes.
    #[must_use]
    pub const fn bytes(self) -> u8 {
        self as u8
    }

    /// From a number of bytes.
    #[must_use]
    pub const fn from_bytes(bytes: u8) -> Option<Self> {
        match bytes {
            1 => Some(Self::Byte),
            2 => Some(Self::Word),
            4 => Some(Self::Dword),
            8 => Some(Self::Qword),
            _ => None,
        }
    }

    /// All value bits set: what a read of nothing returns.
    #[must_use]
    pub const fn mask(self) -> u64 {
        u64::MAX >> (64 - 8 * self.bytes())
    }

    /// The value of this width as a signed number.
    #[must_use]
    pub const fn sign_extend(self, value: u64) -> i64 {
        let unused = 64 - 8 * self.bytes();
        (value << unused).cast_signed() >> unused
    }
}

/// The four registers that CPUID returns.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs)]
pub struct CpuidResult {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// The address is not the guest's RAM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotGuestMemory(pub Gpa);

impl fmt::Display for NotGuestMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "guest-physical address {} is not the guest's memory", self.0)
    }
}

impl core::error::Error for NotGuestMemory {}

/// The guest's RAM. Every access is checked against the guest's memory map.
pub trait GuestMemory {
    /// Copies `bytes.len()` bytes at `gpa` out.
    ///
    /// # Errors
    /// When any byte is not the guest's RAM; nothing has been copied then.
    fn read(&self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), NotGuestMemory>;

    /// Copies `bytes` to `gpa`.
    ///
    /// # Errors
    /// When any byte is not the guest's RAM; nothing has been written then.
    fn write(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), NotGuestMemory>;

    /// Sets `bits` in the aligned 4 bytes at `gpa` if they still are `old`, at once, as a CPU does in a table's entry
    /// (SDM "Accessed and Dirty Flags"). Whether they were; no memory is as it was. As it stands here only where
    /// nobody else writes.
    fn mark(&mut self, gpa: Gpa, old: u32, bits: u32) -> bool {
        match self.read_u32(gpa) {
            Ok(found) if found == old => self.write(gpa, &(old | bits).to_le_bytes()).is_ok(),
            Ok(_) => false,
            Err(_) => true,
        }
    }

    /// Reads a little-endian 64-bit word.
    ///
    /// # Errors
    /// As [`GuestMemory::read`].
    fn read_u64(&self, gpa: Gpa) -> Result<u64, NotGuestMemory> {
        let mut bytes = [0; 8];
        self.read(gpa, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Reads a little-endian 32-bit word.
    ///
    /// # Errors
    /// As [`GuestMemory::read`].
    fn read_u32(&self, gpa: Gpa) -> Result<u32, NotGuestMemory> {
        let mut bytes = [0; 4];
        self.read(gpa, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }
}

/// PCI configuration space of the machine (segment 0).
pub trait ConfigSpace {
    /// Reads `width` (byte, word or dword) at `offset` (0–4095, naturally aligned) of `function`.
    /// What does not exist reads as all ones.
    fn read(&self, function: Bdf, offset: u16, width: Width) -> u32;
    /// Writes.
    fn write(&mut self, function: Bdf, offset: u16, width: Width, value: u32);
}

/// Names an interrupt that a guest's device can raise, for [`Machine::route`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InterruptLine {
    /// Message `index` of the MSI or MSI-X capability of an assigned function.
    Message {
        /// The function.
        function: Bdf,
        /// Index of the message.
        index: u16,
    },
    /// A global system interrupt (input of an I/O APIC).
    Gsi(u32),
}

/// A part of the machine's memory that is a guest's, by name: the kernel alone knows where it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// A memory BAR of a function that is assigned to the guest.
    Bar {
        /// The function.
        function: Bdf,
        /// Index of the BAR's first register.
        index: u8,
    },
    /// Memory that the guest shares with others: the index of the region in its list of them.
    Shared(usize),
}

/// The registers of the machine's PIT that a guest writes which has its channel 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PitRegister {
    /// The count of channel 0.
    Channel0,
    /// The control word. Only one for channel 0 is the guest's.
    Control,
}

/// The route could not be set; the text says why, for the console.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RouteRefused(pub &'static str);

/// What one virtual CPU asks of another of the same guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CpuRequest {
    /// INIT: it stops and waits for a start-up IPI.
    Init,
    /// Start-up IPI with this vector; only a CPU that waits for one takes notice.
    Start(u8),
    /// A non-maskable interrupt for the guest.
    Nmi,
}

/// Maximum number of stand-in pages during a single step: two operands, each across a page boundary.
pub const MAX_STAND_INS: usize = 4;

/// A page whose bytes CPUs read while they are written: each store is made once, as it stands in the code.
pub type SharedPage = [AtomicU8; 4096];

/// The physical machine, for one guest on the CPU that calls.
pub trait Machine {
    /// The time-stamp counter.
    fn tsc(&self) -> u64;
    /// Frequency of the time-stamp counter, in kHz.
    fn tsc_khz(&self) -> u64;
    /// What the local APIC's timer counts in a second, undivided, where it could be measured.
    fn apic_timer_hz(&self) -> Option<u64>;
    /// Seconds since 1970-01-01 00:00 UTC, from the machine's clock.
    fn unix_time(&self) -> u64;
    /// CPUID as the physical CPU answers it.
    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidResult;
    /// Reads a physical MSR; `None` where the CPU raises #GP or the MSR is not on the kernel's list
    /// of those that policy may touch.
    fn read_msr(&mut self, msr: u32) -> Option<u64>;
    /// Writes a physical MSR; `false` as for [`Machine::read_msr`].
    fn write_msr(&mut self, msr: u32, value: u64) -> bool;
    /// Writes XCR0; `false` where the CPU raises #GP.
    fn write_xcr0(&mut self, value: u64) -> bool;
    /// The low 128 bits of a vector register (XMM0 to XMM15), which hold the guest's own value: the
    /// hypervisor uses none.
    fn vector_register(&self, register: u8) -> [u8; 16];
    /// Writes a register of the machine's PIT; dropped where the guest does not have its channel 0.
    fn pit_write(&mut self, register: PitRegister, value: u8);
    /// Reads `part` at `offset`, naturally aligned. What is not the guest's, and a table of MSI-X, read as all
    /// ones.
    fn part_read(&mut self, part: Part, offset: u64, width: Width) -> u64;
    /// Writes; what would read as all ones takes nothing.
    fn part_write(&mut self, part: Part, offset: u64, width: Width, value: u64);
    /// Has entry `index` of the function's MSI-X table send `message`, or masks it. It never sends half of one.
    fn set_msix_entry(&mut self, function: Bdf, index: u16, message: Option<MsiMessage>);

    /// Sends `vector` to this CPU's own local APIC: the guest takes it when it can, exitlessly.
    fn self_ipi(&mut self, vector: Vector);
    /// Ends the highest interrupt in service in this CPU's local APIC.
    fn eoi(&mut self);
    /// Takes what this CPU recorded of a machine check. Does not come back where the CPU is lost.
    fn machine_check(&mut self) -> MachineCheck;
    /// Writes this CPU's caches back and empties them (WBINVD): for devices whose accesses do not look there.
    fn write_back_caches(&mut self);
    /// Sends `vector` to the physical CPU behind virtual CPU `cpu` of this guest: no exit there.
    fn send_ipi(&mut self, cpu: usize, vector: Vector);
    /// Sends `vector` to a physical CPU of a guest that this one shares memory with: no exit there.
    fn ring(&mut self, to: ApicId, vector: Vector);
    /// Has virtual CPU `cpu` of this guest do something at once.
    fn request(&mut self, cpu: usize, what: CpuRequest);
    /// Has virtual CPU `cpu` of this guest exit ([`crate::ExitReason::Nmi`] or [`crate::ExitReason::HostTimer`]).
    fn have_exit(&mut self, cpu: usize);

    /// Points a device's interrupt at a vector of the guest, or cuts it off. For a message, the
    /// answer is what the device itself must be programmed with; for a line the kernel programs the
    /// I/O APIC.
    ///
    /// # Errors
    /// When the line is not this guest's or the IOMMU refuses.
    fn route(
        &mut self,
        line: InterruptLine,
        target: Option<InterruptTarget>,
    ) -> Result<MsiMessage, RouteRefused>;

    /// Maps `length` bytes of `part` from `offset` on at `gpa`, read-write: registers uncached, shared memory cached.
    /// Multiples of 4 KiB. What is not the guest's, and pages that a table of MSI-X touches, are not mapped.
    fn map(&mut self, gpa: Gpa, part: Part, offset: u64, length: u64);
    /// Takes a range out of the guest-physical address space: accesses exit from now on.
    fn unmap(&mut self, gpa: Gpa, length: u64);
    /// Whether the nested table has changed since the last call. The guest's other CPUs have then been asked to drop
    /// what they have cached of it; the one that calls has to.
    fn nested_changed(&mut self) -> bool {
        false
    }
    /// Puts the shadow page `slot` (two for each CPU) in place of the RAM page at `gpa`, read-only; or with
    /// `None` takes it away again.
    fn set_shadow_page(&mut self, slot: usize, gpa: Option<Gpa>);
    /// Has `work` write the bytes of shadow page `slot`, which the guest's CPUs read meanwhile.
    fn with_shadow_page(&mut self, slot: usize, work: impl FnOnce(&SharedPage));

    /// Has this CPU see a page of its own at `page`, full of ones, while it makes a step
    /// ([`crate::vcpu::Vcpu::step`]); with `None` no more. `slot` is below [`MAX_STAND_INS`]. `false` where no nested
    /// table reaches that far.
    fn set_stand_in(&mut self, slot: usize, page: Option<Gpa>) -> bool;
    /// Has `work` read or write the bytes of stand-in `slot`.
    fn with_stand_in(&mut self, slot: usize, work: impl FnOnce(&mut [u8; 4096]));

    /// Puts a byte of the guest's console on the shared serial line.
    fn console_write(&mut self, byte: u8);
    /// A byte typed for the guest's console, if there is one.
    fn console_read(&mut self) -> Option<u8>;
    /// A line of the hypervisor's own log about this guest.
    fn log(&mut self, line: fmt::Arguments<'_>);
}
