//! Why a CPU refused to enter a guest: the manuals' rules, held against the state that the hypervisor's log has.
//!
//! Not in the image, which only writes the state down (`Vcpu::write_state`): it happens by a bug alone.
#![forbid(unsafe_code)]

mod controls;
mod vmcb;
mod vmcs;

use std::collections::BTreeMap;

/// A rule: whether it is kept, and what is wrong if not.
type Rule = (bool, &'static str);

fn first_broken(rules: &[Rule]) -> Result<(), &'static str> {
    rules.iter().find(|(kept, _)| !kept).map_or(Ok(()), |(_, sentence)| Err(sentence))
}

/// A VMCS by the fields' encodings, with MSRs and a CPUID leaf by their numbers, or a VMCB's quadwords by
/// their offsets. What is not there is 0.
#[derive(Clone, Debug, Default)]
struct State(BTreeMap<u32, u64>);

impl State {
    /// From ` NUMBER=VALUE NUMBER=VALUE …`, all hexadecimal. Anything else is passed over.
    fn parse(text: &str) -> Self {
        let pair = |word: &str| {
            let (key, value) = word.split_once('=')?;
            Some((u32::from_str_radix(key, 16).ok()?, u64::from_str_radix(value, 16).ok()?))
        };
        Self(text.split_whitespace().filter_map(pair).collect())
    }

    fn has(&self, key: u32) -> bool {
        self.0.contains_key(&key)
    }

    fn at(&self, key: u32) -> u64 {
        self.0.get(&key).copied().unwrap_or(0)
    }
}

/// A sentence for each refused entry that `log` tells of, with the name of the guest.
#[must_use]
pub fn explain(log: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut lines = log.lines();
    while let Some((guest, code, qualification)) = lines.find_map(refusal) {
        let rest = lines.clone();
        let (kind, state) =
            rest.take_while(|line| refusal(line).is_none()).find_map(state).unwrap_or_default();
        let why = match kind {
            "vmcb" => broken_vmcb(&state),
            _ if code == INVALID_CONTROLS && state.has(PIN_BASED) => {
                controls::Controls(&state).broken().unwrap_or(vmcs::instruction_error(code))
            }
            _ if code >> 31 == 0 => vmcs::instruction_error(code),
            _ => vmcs::entry_failure(code as u16, qualification)
                .or_else(|| vmcs::GuestState::read(&state).broken())
                .unwrap_or("invalid guest state that breaks none of the rules known here"),
        };
        found.push(format!("{guest}: {why}"));
    }
    found
}

/// The VM-instruction error that is about the control fields.
const INVALID_CONTROLS: u64 = 7;
/// A field that is in the log where the controls are.
const PIN_BASED: u32 = 0x4000;

/// The first rule that the control fields of a VMCS break, given with the capability MSRs as the log has them:
/// ` NUMBER=VALUE …`.
#[must_use]
pub fn controls(text: &str) -> Option<&'static str> {
    controls::Controls(&State::parse(text)).broken()
}

/// The first rule that a VMCB breaks, given as the log has it: ` OFFSET=VALUE …`.
#[must_use]
pub fn vmcb(text: &str) -> Option<&'static str> {
    vmcb::Vmcb::read(&State::parse(text)).broken()
}

fn broken_vmcb(state: &State) -> &'static str {
    vmcb::Vmcb::read(state)
        .broken()
        .unwrap_or("VMRUN refused the VMCB, though it breaks none of the rules known here")
}

/// Guest, code and qualification of `guest NAME: stopped: the CPU refused to enter it: … (code 0x…, 0x…)`.
fn refusal(line: &str) -> Option<(&str, u64, u64)> {
    let (start, rest) = line.split_once(": stopped: the CPU refused to enter it")?;
    let (_, numbers) = rest.split_once("(code ")?;
    let (numbers, _) = numbers.split_once(')')?;
    let (code, qualification) = numbers.split_once(", ")?;
    let number = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok();
    let guest = start.rsplit_once("guest ").map_or(start, |(_, name)| name);
    Some((guest, number(code)?, number(qualification)?))
}

/// The state, and whether it is a `vmcs` or a `vmcb`.
fn state(line: &str) -> Option<(&'static str, State)> {
    ["vmcs", "vmcb"].into_iter().find_map(|kind| {
        let (_, words) = line.split_once(&format!(": {kind} "))?;
        Some((kind, State::parse(words)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refused_entry_is_explained_from_the_lines_behind_it() {
        let log = "nexit: guest a: stopped: the CPU refused to enter it: VM-entry failure (code 0x80000021, 0x0)\n\
                   nexit: guest a: rip 0x0\n\
                   nexit: guest a: vmcs 800=10 6820=0 80000008=2e\n\
                   nexit: guest b c: stopped: the CPU refused to enter it: x (code 0x7, 0x0)\r\n\
                   nexit: guest b c: vmcs 800=10\n\
                   nexit: guest c: stopped: the CPU refused to enter it: x (code 0x7, 0x0)\n\
                   nexit: guest c: vmcs 4000=16 400c=400200 48d=7f00000016 48e=0 48f=ffffffff00000000\n\
                   nexit: guest d: stopped: the CPU refused to enter it: x (code 0xffffffffffffffff, 0x0)\n\
                   nexit: guest d: vmcb 4d0=500\n\
                   nexit: guest e: stopped: the CPU refused to enter it: x (code 0x80000021, 0x4)\n";
        let [a, b, c, d, e] = &explain(log)[..] else { panic!("{:?}", explain(log)) };
        assert_eq!(a, "a: CS's type is not accessed code (or 3)");
        assert_eq!(b, "b c: VM entry with invalid control fields");
        assert_eq!(
            c,
            "c: \"save VMX-preemption timer value\" without \"activate VMX-preemption timer\""
        );
        assert_eq!(d, "d: EFER.SVME is 0");
        assert_eq!(e, "e: invalid guest state: the VMCS link pointer");
        assert!(explain("nexit: all guests have ended\n").is_empty());
    }
}
