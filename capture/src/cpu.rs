//! CPUs: where they are, and what CPUID and the capability MSRs say.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use arch::machine::CpuidResult;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cpu {
    /// Identifier of its local APIC.
    pub apic_id: u32,
    /// Index of its kind in [`crate::Capture::cpu_kinds`].
    #[serde(default)]
    pub kind: usize,
    /// Its package, where a system counted it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package: Option<u32>,
    /// Its core, a number that is unique in its package.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub core: Option<u32>,
    /// Its NUMA node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numa: Option<u32>,
}

/// What CPUs say that are all alike.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuKind {
    /// The name, where the leaves do not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Revision of the microcode.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "crate::numbers::optional_hex"
    )]
    pub microcode: Option<u64>,
    /// What `/proc/cpuinfo` lists as `flags` and `vmx flags`, in a row.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub flags: String,
    /// CPUID, where it could be read; a leaf that is all zero is left out.
    #[serde(default)]
    pub cpuid: Leaves,
    /// The MSRs of VMX (0x3a, 0x480 to 0x492) and SVM (0xc0010114); one that the CPU has not is left out.
    #[serde(default)]
    pub msrs: Words,
}

impl CpuKind {
    /// CPUID, as this CPU answers it; all zeroes where nothing is known.
    #[must_use]
    pub fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        let [eax, ebx, ecx, edx] = self.cpuid.0.get(&(leaf, subleaf)).copied().unwrap_or_default();
        CpuidResult { eax, ebx, ecx, edx }
    }

    #[must_use]
    pub fn msr(&self, number: u32) -> Option<u64> {
        self.msrs.0.get(&number).copied()
    }

    /// What VT-x can do; `None` where its MSRs are not known.
    #[must_use]
    pub fn vmx(&self) -> Option<vmx::capability::Capabilities> {
        let cpuid = |leaf, subleaf| self.cpuid(leaf, subleaf);
        let found =
            vmx::capability::Capabilities::gather(cpuid, |number| self.msr(number).unwrap_or(0));
        (!found.vmx || found.basic != 0).then_some(found)
    }

    /// What AMD-V can do; without VM_CR it is taken as not locked off.
    #[must_use]
    pub fn svm(&self) -> svm::Capabilities {
        let cpuid = |leaf, subleaf| self.cpuid(leaf, subleaf);
        svm::Capabilities::gather(cpuid, || self.msr(arch::msr::VM_CR).unwrap_or(0))
    }
}

/// CPUID's answers by leaf and subleaf: EAX, EBX, ECX, EDX. As text a row each, all in hexadecimal:
/// `00000007 0 00000002 219c07ab 18400724 bc000400`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Leaves(pub BTreeMap<(u32, u32), [u32; 4]>);

/// MSRs by number. As text a row each, in hexadecimal: `480 00da040000000004`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Words(pub BTreeMap<u32, u64>);

impl Leaves {
    /// From text.
    ///
    /// # Errors
    /// The row that cannot be read.
    pub fn parse(text: &str) -> Result<Self, String> {
        let row = |line: &str| {
            let words: Option<Vec<u32>> = numbers(line).map(|n| u32::try_from(n?).ok()).collect();
            let [leaf, subleaf, registers @ ..] = words.as_deref()? else { return None };
            Some(((*leaf, *subleaf), <[u32; 4]>::try_from(registers).ok()?))
        };
        rows(text, "leaf, subleaf, EAX, EBX, ECX, EDX", row).map(Self)
    }
}

impl Words {
    /// From text.
    ///
    /// # Errors
    /// The row that cannot be read.
    pub fn parse(text: &str) -> Result<Self, String> {
        let row = |line: &str| {
            let words: Option<Vec<u64>> = numbers(line).collect();
            let [number, value] = words.as_deref()? else { return None };
            Some((u32::try_from(*number).ok()?, *value))
        };
        rows(text, "the number of an MSR and its value", row).map(Self)
    }
}

fn numbers(line: &str) -> impl Iterator<Item = Option<u64>> {
    line.split_whitespace().map(|word| u64::from_str_radix(word, 16).ok())
}

fn rows<K: Ord, V>(
    text: &str,
    what: &str,
    row: impl Fn(&str) -> Option<(K, V)>,
) -> Result<BTreeMap<K, V>, String> {
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    let refuse = |line| format!("\"{line}\" is no row of {what} in hexadecimal");
    lines.map(|line| row(line).ok_or_else(|| refuse(line))).collect()
}

impl Serialize for Leaves {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut text = String::new();
        for ((leaf, subleaf), [eax, ebx, ecx, edx]) in &self.0 {
            let _ =
                writeln!(text, "{leaf:08x} {subleaf:x} {eax:08x} {ebx:08x} {ecx:08x} {edx:08x}");
        }
        to.serialize_str(&text)
    }
}

impl Serialize for Words {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut text = String::new();
        for (number, value) in &self.0 {
            let _ = writeln!(text, "{number:x} {value:016x}");
        }
        to.serialize_str(&text)
    }
}

impl<'d> Deserialize<'d> for Leaves {
    fn deserialize<D: Deserializer<'d>>(from: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(from)?).map_err(de::Error::custom)
    }
}

impl<'d> Deserialize<'d> for Words {
    fn deserialize<D: Deserializer<'d>>(from: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(from)?).map_err(de::Error::custom)
    }
}
