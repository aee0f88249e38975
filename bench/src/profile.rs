//! `nexit-bench profile`: the plugin's windows as text, with `profile=` by function of the hypervisor.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use nexit::failure::{OrFailed, Result};
use nexit::tool::Tool;

use crate::reading::{self, Cpu, reason};

/// Prints every window.
pub(crate) fn print(counts: &Path, image: &Path) -> Result<()> {
    let text = fs::read_to_string(counts).or_failed("read", counts)?;
    let symbols = symbols(&Tool::new("nm").args(["-C"]).arg(image).output()?);
    for window in reading::windows(&text)? {
        let name = window.window.map_or_else(|| "all".to_owned(), |window| window.to_string());
        let sum = window.sum();
        println!(
            "window {name}: guest {} hypervisor {} switches {} halts {}",
            sum.guest, sum.host, sum.switches, sum.halts
        );
        print!("{}", by_reason(&sum, &symbols));
    }
    Ok(())
}

fn by_reason(sum: &Cpu, symbols: &BTreeMap<u64, String>) -> String {
    let mut text = String::new();
    for (code, cost) in &sum.by_code {
        let each = cost.instructions as f64 / cost.exits.max(1) as f64;
        let reason = reason(code);
        text += &format!(
            "  {reason}: {} exits, {} instructions, {each:.1} each\n",
            cost.exits, cost.instructions
        );
        for (function, count) in by_function(sum, code, symbols) {
            let each = count as f64 / cost.exits.max(1) as f64;
            text += &format!("    {each:10.1}  {function}\n");
        }
    }
    text
}

/// Instructions by function, the most first.
fn by_function(sum: &Cpu, code: &str, symbols: &BTreeMap<u64, String>) -> Vec<(String, u64)> {
    let mut functions: BTreeMap<String, u64> = BTreeMap::new();
    for (_, at, count) in sum.profile.iter().filter(|(other, _, _)| other == code) {
        let at = u64::from_str_radix(at.trim_start_matches("0x"), 16).unwrap_or_default();
        let symbol = symbols.range(..=at).next_back().map_or("?", |(_, name)| name.as_str());
        *functions.entry(symbol.to_owned()).or_default() += count;
    }
    let mut list: Vec<(String, u64)> = functions.into_iter().collect();
    list.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    list
}

/// Address → name, from `nm`.
fn symbols(list: &str) -> BTreeMap<u64, String> {
    let of_line = |line: &str| {
        let mut words = line.splitn(3, ' ');
        let address = u64::from_str_radix(words.next()?, 16).ok()?;
        let kind = words.next()?;
        kind.eq_ignore_ascii_case("t").then_some((address, words.next()?.to_owned()))
    };
    list.lines().filter_map(of_line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_belong_to_the_function_that_begins_before_them() {
        let symbols =
            symbols("0000000000201000 T enter\n0000000000201100 t handle\n0000000000300000 D x\n");
        let steps = [
            ("0x72", "0x201004", 3),
            ("0x72", "0x2010ff", 1),
            ("0x72", "0x201100", 7),
            ("0x61", "0x201100", 9),
        ];
        let profile = steps.map(|(code, at, n)| (code.to_owned(), at.to_owned(), n)).to_vec();
        let sum = Cpu { profile, ..Cpu::default() };
        let list = by_function(&sum, "0x72", &symbols);
        assert_eq!(list, [("handle".to_owned(), 7), ("enter".to_owned(), 4)]);
    }
}
