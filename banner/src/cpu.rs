//! Which CPU it is.

use core::fmt;

use raw_cpuid::{CpuId, CpuIdReader, CpuIdResult};

use crate::Cpuid;

/// The CPU as its maker calls it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cpu {
    vendor: [u8; 12],
    brand: [u8; 48],
    /// Family, model and stepping, extended fields included.
    pub signature: (u16, u8, u8),
    /// Revision of the microcode that runs, where it is known.
    pub microcode: Option<u32>,
    /// A hypervisor runs below.
    pub hypervisor: bool,
}

/// CPUID for `raw_cpuid`.
#[derive(Clone)]
struct Reader<C>(C);

impl<C: Cpuid> CpuIdReader for Reader<C> {
    fn cpuid2(&self, leaf: u32, subleaf: u32) -> CpuIdResult {
        let it = (self.0)(leaf, subleaf);
        CpuIdResult { eax: it.eax, ebx: it.ebx, ecx: it.ecx, edx: it.edx }
    }
}

impl Cpu {
    /// Asks the CPU that calls; `microcode` is the caller's to read, as it is in an MSR.
    #[must_use]
    pub fn read(cpuid: impl Cpuid, microcode: Option<u32>) -> Self {
        let cpuid = CpuId::with_cpuid_reader(Reader(cpuid));
        let (mut vendor, mut brand) = ([0; 12], [0; 48]);
        if let Some(it) = cpuid.get_vendor_info() {
            copy(&mut vendor, it.as_str());
        }
        if let Some(it) = cpuid.get_processor_brand_string() {
            copy(&mut brand, it.as_str());
        }
        let features = cpuid.get_feature_info();
        // The sum of the family is made here, as the crate's own overflows.
        let signature = features.as_ref().map_or((0, 0, 0), |it| {
            let base = it.base_family_id();
            let extended = if base == 0xf { it.extended_family_id() } else { 0 };
            (u16::from(base) + u16::from(extended), it.model_id(), it.stepping_id())
        });
        let hypervisor = features.is_some_and(|it| it.has_hypervisor());
        Self { vendor, brand, signature, microcode, hypervisor }
    }
}

fn copy(to: &mut [u8], text: &str) {
    to.iter_mut().zip(text.bytes()).for_each(|(to, byte)| *to = byte);
}

/// What a field of bytes says, up to the first zero.
fn text(bytes: &[u8]) -> &str {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    core::str::from_utf8(bytes.get(..end).unwrap_or_default()).unwrap_or("?").trim()
}

impl fmt::Display for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (family, model, stepping) = self.signature;
        let brand = text(&self.brand);
        let brand = if brand.is_empty() { "without a name" } else { brand };
        write!(
            f,
            "{brand}, {}, family {family:#x} model {model:#x} stepping {stepping}, microcode ",
            text(&self.vendor)
        )?;
        match self.microcode {
            Some(revision) => write!(f, "{revision:#x}")?,
            None => f.write_str("unknown")?,
        }
        if self.hypervisor { f.write_str(", below another hypervisor") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arch::machine::CpuidResult;

    fn result(words: [u32; 4]) -> CpuidResult {
        let [eax, ebx, ecx, edx] = words;
        CpuidResult { eax, ebx, ecx, edx }
    }

    fn word(text: &[u8], at: usize) -> u32 {
        let mut bytes = [0; 4];
        bytes.iter_mut().zip(&text[(at * 4).min(text.len())..]).for_each(|(to, byte)| *to = *byte);
        u32::from_le_bytes(bytes)
    }

    fn machine(vendor: &'static [u8; 12], signature: u32, brand: &'static [u8]) -> impl Cpuid {
        move |leaf, _| match leaf {
            0 => result([1, word(vendor, 0), word(vendor, 2), word(vendor, 1)]),
            1 => result([signature, 0, 0, 0]),
            0x8000_0000 => result([0x8000_0004, 0, 0, 0]),
            0x8000_0002..=0x8000_0004 => {
                let at = (leaf - 0x8000_0002) as usize * 4;
                result([0, 1, 2, 3].map(|i| word(brand, at + i)))
            }
            _ => CpuidResult::default(),
        }
    }

    #[test]
    fn the_cpu_is_called_what_its_maker_calls_it() {
        let cpuid =
            machine(b"GenuineIntel", 0x000b_06a2, b"   13th Gen Intel(R) Core(TM) i7-1360P\0");
        assert_eq!(
            Cpu::read(cpuid, Some(0x4121)).to_string(),
            "13th Gen Intel(R) Core(TM) i7-1360P, GenuineIntel, family 0x6 model 0xba stepping 2, \
             microcode 0x4121"
        );
        let cpuid = machine(b"AuthenticAMD", 0x00a2_0f12, b"AMD Ryzen 9 5950X");
        let cpu = Cpu::read(cpuid, None).to_string();
        assert!(cpu.contains("family 0x19 model 0x21 stepping 2, microcode unknown"), "{cpu}");
    }

    #[test]
    fn a_cpu_that_says_nothing_is_still_a_line() {
        let cpu = Cpu::read(|_, _| CpuidResult::default(), None).to_string();
        assert!(cpu.starts_with("without a name, "), "{cpu}");
        // Ones everywhere: text that is no text.
        let ones = |_: u32, _: u32| result([u32::MAX; 4]);
        assert!(!Cpu::read(ones, None).to_string().is_empty());
    }
}
