//! `/proc/interrupts`: how many interrupts a device has raised.

/// Interrupts of all lines whose last words contain `name`, over all CPUs.
///
/// A line is `  24:  1000  20  PCI-MSI 65536-edge  nvme0q0`: the number, one count per CPU, then
/// words. A name may itself hold digits, so only the leading run of plain numbers counts.
#[must_use]
pub fn count(table: &str, name: &str) -> u64 {
    table.lines().filter_map(|line| count_line(line, name)).sum()
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
    fn a_device_without_interrupts_has_none() {
        assert_eq!(count(TABLE, "eth0"), 0);
        assert_eq!(count("", "nvme"), 0);
        assert_eq!(count("CPU0", "CPU"), 0);
    }
}
