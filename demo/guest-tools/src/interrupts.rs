//! `/proc/interrupts`: how many interrupts a device has raised.

use std::collections::BTreeMap;

/// Interrupts of all lines whose last words contain `name`, over all CPUs.
///
/// A line is `  24:  1000  20  PCI-MSI 65536-edge  nvme0q0`: the number, one count per CPU, then
/// words. A name may itself hold digits, so only the leading run of plain numbers counts.
#[must_use]
pub fn count(table: &str, name: &str) -> u64 {
    table.lines().filter_map(|line| count_line(line, name)).sum()
}

/// The interrupts of every line over all CPUs, by the line's name: its last word where it has a number
/// (`nvme0q1`), else what stands before the colon (`LOC`).
#[must_use]
pub fn all(table: &str) -> BTreeMap<String, u64> {
    let of_line = |line: &str| {
        let (label, rest) = line.split_once(':')?;
        let label = label.trim();
        let counts = rest.split_whitespace().map_while(|word| word.parse::<u64>().ok());
        let numbered = label.bytes().all(|byte| byte.is_ascii_digit());
        let name = if numbered { rest.split_whitespace().last()? } else { label };
        Some((name.to_owned(), counts.sum::<u64>()))
    };
    let mut all = BTreeMap::new();
    for (name, count) in table.lines().filter_map(of_line) {
        *all.entry(name).or_insert(0_u64) += count;
    }
    all
}

fn count_line(line: &str, name: &str) -> Option<u64> {
    let (_, rest) = line.split_once(':')?;
    let words: Vec<&str> = rest.split_whitespace().collect();
    let counts = words.iter().take_while(|word| word.bytes().all(|byte| byte.is_ascii_digit()));
    let (sum, columns) =
        counts.fold((0_u64, 0), |(sum, columns), word| (sum + number(word), columns + 1));
    let described = words.get(columns..)?.iter().any(|word| word.contains(name));
    described.then_some(sum)
}

fn number(word: &str) -> u64 {
    word.parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
           CPU0       CPU1
  4:         10          1   virtual  ttyS0
 24:          7         20   PCI-MSI 65536-edge      nvme0q0
 25:        100          3   PCI-MSI 65537-edge      nvme0q1
LOC:       1000       2000   Local timer interrupts
ERR:          0
";

    #[test]
    fn all_queues_and_cpus_of_a_device_are_summed() {
        assert_eq!(count(TABLE, "nvme0q"), 130);
        assert_eq!(count(TABLE, "nvme0q1"), 103);
        assert_eq!(count(TABLE, "timer"), 3000);
    }

    #[test]
    fn every_line_has_a_name() {
        let all = all(TABLE);
        assert_eq!((all["nvme0q1"], all["LOC"], all["ttyS0"], all["ERR"]), (103, 3000, 11, 0));
    }

    #[test]
    fn a_device_without_interrupts_has_none() {
        assert_eq!(count(TABLE, "eth0"), 0);
        assert_eq!(count("", "nvme"), 0);
        assert_eq!(count("CPU0", "CPU"), 0);
    }
}
