//! Windows as lines of JSON. Pure.
//!
//! ```json
//! {"window":5,"number":0,"cpus":[{"guest":0,"host":0,"switches":0,"halts":0,
//!   "by_code":{"0x72":{"exits":0,"instructions":0}},"vectors":{"0x24":0},"profile":[["0x72","0x200000",0]]}]}
//! ```
//! `window` is the program's own number, `number` counts the windows from 0; the last line has the
//! window `null`: all of the run. The keys of `by_code` are the VMCB's exit codes, `boot` for what came before
//! the first VMRUN, and `unknown`; in `profile` also `guest`.

use std::fmt::Write as _;

use crate::account::{Account, BEFORE_THE_FIRST_ENTRY, GUEST, UNKNOWN};

/// One line.
pub(crate) fn line(window: Option<u8>, number: usize, cpus: &[Account]) -> String {
    let window = window.map_or_else(|| "null".to_owned(), |window| window.to_string());
    let cpus: Vec<String> = cpus.iter().map(cpu).collect();
    format!("{{\"window\":{window},\"number\":{number},\"cpus\":[{}]}}\n", cpus.join(","))
}

fn cpu(account: &Account) -> String {
    let Account { guest, host, switches, halts, .. } = account;
    let by_code: Vec<String> = account
        .by_code
        .iter()
        .map(|(code, cost)| {
            let (exits, instructions) = (cost.exits, cost.instructions);
            let name = name(*code);
            format!("\"{name}\":{{\"exits\":{exits},\"instructions\":{instructions}}}")
        })
        .collect();
    let vectors: Vec<String> =
        account.vectors.iter().map(|(vector, count)| format!("\"{vector:#x}\":{count}")).collect();
    let mut text = format!(
        "{{\"guest\":{guest},\"host\":{host},\"switches\":{switches},\"halts\":{halts},\
         \"by_code\":{{{}}},\"vectors\":{{{}}}",
        by_code.join(","),
        vectors.join(",")
    );
    if !account.profile.is_empty() {
        let steps = account.profile.iter();
        let steps =
            steps.map(|((code, at), count)| format!("[\"{}\",\"{at:#x}\",{count}]", name(*code)));
        // Writing to a String cannot fail.
        let _ = write!(text, ",\"profile\":[{}]", steps.collect::<Vec<_>>().join(","));
    }
    text + "}"
}

fn name(code: u64) -> String {
    match code {
        BEFORE_THE_FIRST_ENTRY => "boot".to_owned(),
        UNKNOWN => "unknown".to_owned(),
        GUEST => "guest".to_owned(),
        code => format!("{code:#x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_as_documented() {
        let mut account = Account::default();
        account.enter(10);
        account.interrupted(0x24);
        account.leave(30, 0x72);
        account.step(0x20_0000);
        account.settle(31);
        let expected = "{\"window\":5,\"number\":2,\"cpus\":[{\"guest\":20,\"host\":11,\
             \"switches\":1,\"halts\":0,\"by_code\":{\"0x72\":{\"exits\":1,\"instructions\":1},\
             \"boot\":{\"exits\":0,\"instructions\":10}},\"vectors\":{\"0x24\":1},\"profile\":[[\"0x72\",\"0x200000\",1]]}]}\n";
        assert_eq!(line(Some(5), 2, &[account]), expected);
        assert_eq!(line(None, 0, &[]), "{\"window\":null,\"number\":0,\"cpus\":[]}\n");
    }
}
