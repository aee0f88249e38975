//! Whom to believe.
//!
//! Sources are asked in their order until two agree that nothing contradicts. An exact claim of CPUID counts
//! where no measurement contradicts it, or one confirms it. A measurement counts where no other contradicts
//! it, or where another source takes its side. Leaf 0x16 comes last: it only says about how much.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use arch::clock::Counter;
use arch::machine::CpuidResult;

use crate::claims::claims;
use crate::interval::Interval;
use crate::window::{Fault, tsc_by};

/// Maximum error of a correct clock: the IA-PC HPET Specification's limit over a
/// millisecond or more. Crystals of other clocks are no worse.
const CLOCK_PPM: u64 = 500;
/// A measurement with a larger error may contradict, but gives no value.
const MAX_ERROR_PPM: u64 = 5000;

/// A clock that may be there.
pub struct Clock<'a> {
    /// Its name in the log.
    pub name: &'static str,
    /// Its rate.
    pub hz: u64,
    /// `None` if the machine has none.
    pub counter: Option<&'a mut dyn Counter>,
}

/// The TSC's frequency.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frequency {
    pub khz: u64,
    /// How far the true one can be from it, in parts per million, as far as is known.
    pub error_ppm: Option<u64>,
    /// The sources that agree, for the log.
    pub source: String,
    /// One sentence for each source that disagrees.
    pub remarks: Vec<String>,
}

/// No source can be trusted: each source and its value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refused(Vec<(&'static str, String)>);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "the frequency of the CPU's time-stamp counter is not known, and without it no time can be \
             told: switch a clock on in the firmware's setup (HPET or ACPI timer). Tried were",
        )?;
        for (index, (name, said)) in self.0.iter().enumerate() {
            write!(f, "{} {name}: {said}", if index == 0 { "" } else { ";" })?;
        }
        Ok(())
    }
}

/// One source that said something.
#[derive(Clone, Copy, Debug)]
struct Evidence {
    name: &'static str,
    hz: u64,
    /// The interval of the true frequency, if the source is as exact as it claims.
    interval: Interval,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Exact,
    Measured,
    Rough,
}

impl Evidence {
    /// The interval, if the source has the error that is permitted for its kind.
    fn honest(&self) -> Interval {
        match self.kind {
            Kind::Measured => self.interval.widened(CLOCK_PPM),
            Kind::Exact | Kind::Rough => self.interval,
        }
    }

    fn contradicts(&self, other: &Self) -> bool {
        !self.honest().overlaps(other.honest())
    }

    fn is_measured(&self) -> bool {
        self.kind == Kind::Measured
    }
}

/// Asks the sources in order: CPUID, then each of `clocks` until the result is certain.
///
/// # Errors
/// If no source can be trusted.
pub fn tsc_frequency(
    cpuid: &dyn Fn(u32) -> CpuidResult,
    clocks: &mut [Clock<'_>],
) -> Result<Frequency, Refused> {
    let mut said: Vec<(&'static str, String)> = Vec::new();
    let mut evidence: Vec<Evidence> = Vec::new();
    for (index, (name, claim)) in claims(cpuid).into_iter().enumerate() {
        let kind = if index < 2 { Kind::Exact } else { Kind::Rough };
        match claim {
            Ok(claim) => {
                said.push((name, format!("{} kHz", claim.hz / 1000)));
                evidence.push(Evidence { name, hz: claim.hz, interval: claim.interval, kind });
            }
            Err(why) => said.push((name, why.into())),
        }
    }
    let mut faults = Vec::new();
    for Clock { name, hz, counter } in clocks {
        if is_settled(&evidence) {
            break;
        }
        let measured = match counter {
            Some(counter) => tsc_by(*counter, *hz),
            None => Err(Fault::Unusable("is not there")),
        };
        match measured {
            Ok(interval) => {
                said.push((name, format!("{interval}")));
                let hz = interval.middle();
                evidence.push(Evidence { name, hz, interval, kind: Kind::Measured });
            }
            Err(fault) => {
                said.push((name, format!("{fault}")));
                if !matches!(fault, Fault::Unusable(_)) {
                    faults.push(format!("{name} {fault}: it is not used"));
                }
            }
        }
    }
    match believed(&evidence) {
        Some(believed) => Ok(frequency(believed, &evidence, faults)),
        None => Err(Refused(said)),
    }
}

/// Whether a further clock would change nothing.
fn is_settled(evidence: &[Evidence]) -> bool {
    let precise = |one: &&Evidence| one.interval.error_ppm(one.hz) <= CLOCK_PPM;
    let precise: Vec<&Evidence> = evidence.iter().filter(precise).collect();
    let measured = precise.iter().any(|one| one.is_measured());
    let agreed = precise.iter().all(|one| !evidence.iter().any(|other| other.contradicts(one)));
    measured && agreed && precise.len() > 1
}

fn believed(evidence: &[Evidence]) -> Option<&Evidence> {
    let of = |kind| evidence.iter().filter(move |one| one.kind == kind);
    let candidates = of(Kind::Exact).chain(of(Kind::Measured)).chain(of(Kind::Rough));
    candidates.into_iter().find(|candidate| {
        let others = || evidence.iter().filter(|other| !core::ptr::eq(*other, *candidate));
        let (against, with): (Vec<_>, Vec<_>) = others()
            .filter(|other| other.is_measured())
            .partition(|clock| clock.contradicts(candidate));
        match candidate.kind {
            Kind::Exact | Kind::Rough => against.is_empty() || !with.is_empty(),
            Kind::Measured => {
                let takes_its_side = |clock: &&Evidence| {
                    others().any(|o| !o.contradicts(candidate) && o.contradicts(clock))
                };
                candidate.interval.error_ppm(candidate.hz) <= MAX_ERROR_PPM
                    && against.iter().all(takes_its_side)
            }
        }
    })
}

fn frequency(believed: &Evidence, evidence: &[Evidence], mut remarks: Vec<String>) -> Frequency {
    let others = || evidence.iter().filter(|other| !core::ptr::eq(*other, believed));
    let mut source = String::from(believed.name);
    let mut error_ppm = None;
    if believed.kind != Kind::Exact {
        let ppm = believed.interval.error_ppm(believed.hz);
        source += &format!(" within {ppm} ppm");
        error_ppm = Some(ppm);
    }
    let mut mark = "; ";
    for other in others().filter(|other| !other.contradicts(believed)) {
        if other.is_measured() {
            let ppm = other.interval.error_ppm(believed.hz);
            source += &format!("{mark}{} agrees within {ppm} ppm", other.name);
            error_ppm = Some(error_ppm.map_or(ppm, |before: u64| before.min(ppm)));
        } else {
            source += &format!("{mark}{} agrees", other.name);
        }
        mark = ", ";
    }
    if !evidence.iter().any(Evidence::is_measured) {
        source += "; no clock to check it by";
    }
    for other in others().filter(|other| other.contradicts(believed)) {
        remarks.push(format!("{} gives {} kHz: it is not used", other.name, other.hz / 1000));
    }
    Frequency { khz: (believed.hz + 500) / 1000, error_ppm, source, remarks }
}
