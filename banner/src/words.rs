//! The words that say what virtualization can do, in one line that can be pasted.

use core::fmt;

use arch::machine::CpuidResult;

/// Words by number, such as `480=d810000000002b`: an MSR's number and its value, in hexadecimal. A
/// word that is 0 is left out, as an MSR that the CPU has not.
#[derive(Clone, Copy, Debug)]
pub struct Words<'a>(pub &'a [(u32, u64)]);

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut space = "";
        for (number, value) in self.0.iter().filter(|(_, value)| *value != 0) {
            write!(f, "{space}{number:x}={value:x}")?;
            space = " ";
        }
        Ok(())
    }
}

/// AMD-V's: CPUID 8000_000A (APM volume 3, "CPUID Fn8000_000A": revision, ASIDs, features).
#[derive(Clone, Copy, Debug)]
pub struct SvmWords(pub CpuidResult);

impl fmt::Display for SvmWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CpuidResult { eax, ebx, ecx, edx } = self.0;
        write!(f, "8000000a.eax={eax:x} ebx={ebx:x} ecx={ecx:x} edx={edx:x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_printed_as_the_table_of_cpus_has_them() {
        let words = [(0x480, 0xd8_1000_0000_002b), (0x492, 0), (0x48d, 0x3f_0000_0016)];
        assert_eq!(Words(&words).to_string(), "480=d810000000002b 48d=3f00000016");
        let svm = CpuidResult { eax: 1, ebx: 16, ecx: 0, edx: 0x1_0001 };
        assert_eq!(SvmWords(svm).to_string(), "8000000a.eax=1 ebx=10 ecx=0 edx=10001");
    }
}
