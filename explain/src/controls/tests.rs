//! One broken rule at a time.

use crate::controls;

/// The controls of a guest in the posted mode on a CPU that has all that Nexit can use: each field, as an entry takes
/// it.
const GOOD: &str = "4000=ff 4002=b6226172 401e=1013ba 2034=10 400c=7fffff 4012=d3ff 400a=0 400e=0 4010=0 4014=0 \
                    4016=0 401a=0 401c=0 0=1 2=f2 8=3f 2000=1000 2002=2000 2004=3000 2012=4000 2016=5040 201a=601e \
                    2042=7000 6800=1 48d=ff00000016 48e=fffbfffe04006172 48b=3ffffff00000000 492=91 \
                    48f=1ffffff00036dfb 490=3ffff000011fb 48c=f0106334041 80000008=2e";

/// [`GOOD`] with these fields in place of its own: the last one counts.
fn with(fields: &str) -> Option<&'static str> {
    controls(&format!("{GOOD} {fields}"))
}

#[test]
fn what_an_entry_takes_breaks_no_rule() {
    assert_eq!(with(""), None);
    assert_eq!(with("4002=96006172 401e=0 400c=7fffff 4000=7f"), None, "the least of it");
}

#[test]
fn each_rule_is_named_where_it_is_broken() {
    let cases = [
        ("4000=fe 48d=ff00000017", "the pin-based controls lack a bit"),
        ("4000=1ff", "the pin-based controls have a bit"),
        ("4002=b6224172", "the primary controls lack a bit"),
        ("4002=b6266172", "the primary controls have a bit"),
        ("400c=7ffffe", "the VM-exit controls lack a bit that IA32_VMX_EXIT_CTLS"),
        ("400c=27fffff", "the VM-exit controls have a bit"),
        ("4012=d3fe 490=3ffff000011ff", "the VM-entry controls lack a bit"),
        ("4012=4d3ff", "the VM-entry controls have a bit"),
        ("401e=41013ba", "the secondary controls have a bit"),
        ("2034=30", "the tertiary controls have a bit"),
        ("400a=5", "CR3 targets"),
        ("2000=1008", "an I/O bitmap's address"),
        ("2002=400000000000", "an I/O bitmap's address"),
        ("2004=3800", "the MSR bitmap's address"),
        ("4000=f7", "\"virtual NMIs\" without"),
        ("4000=df 4002=b6626172", "\"NMI-window exiting\" without"),
        ("401e=1033ba", "\"enable VM functions\""),
        ("401e=1053ba", "\"VMCS shadowing\""),
        ("401e=1413ba", "\"EPT-violation #VE\""),
        ("2012=4010", "the virtual-APIC address"),
        ("401e=1011ba 4000=7f 401c=10", "the TPR threshold"),
        ("4002=b6026172", "the virtual APIC without"),
        ("401e=1013bb", "\"virtualize APIC accesses\""),
        ("4000=fe", "\"virtual-interrupt delivery\" without"),
        ("401e=1011ba", "\"process posted interrupts\" without \"virtual-interrupt delivery\""),
        ("400c=7f7fff", "without \"acknowledge interrupt on exit\""),
        ("2=1f2", "notification vector"),
        ("2016=5020", "posted-interrupt descriptor"),
        ("2042=7004", "the PID-pointer table"),
        ("2042=3ffffffffff8 8=3f", "the PID-pointer table"),
        ("8=2000000000000000", "the PID-pointer table"),
        ("0=0", "VPID 0"),
        ("201a=6018", "memory type"),
        ("201a=6026", "page-walk length"),
        ("201a=605e 48c=f0106134041", "accessed and dirty"),
        ("201a=681e", "the EPT pointer has reserved bits"),
        ("201a=40000000601e", "the EPT pointer is beyond"),
        ("401e=1013b8", "needs EPT"),
        ("401e=121338", "needs EPT"),
        ("4000=bf", "\"save VMX-preemption timer value\" without"),
        ("400e=1", "an area of MSRs"),
        ("400c=7ffdff 48f=1ffffff00036dfb", "host address-space size"),
        ("400c=807fffff 48f=ffffffff00036dfb", "secondary VM-exit controls"),
        ("4012=d7ff", "an entry to SMM"),
        ("401e=11013ba", "Intel PT"),
        ("4016=80000100", "reserved type 1"),
        ("4016=80001b0e", "reserved bits set"),
        ("4016=80000203", "vector other than 2"),
        ("4016=80000320", "vector beyond 31"),
        ("4016=8000030d", "error code"),
        ("4016=80000b06", "error code"),
        ("4016=80000480", "length of its instruction"),
    ];
    for (fields, words) in cases {
        let sentence = with(fields).unwrap_or("no rule");
        assert!(sentence.contains(words), "{fields}: {sentence}");
    }
}

#[test]
fn events_of_each_kind_are_taken_as_the_manual_spells_them() {
    for event in
        ["80000040", "80000202", "80000b0d", "80000306", "80000480 401a=2", "800006f3 401a=1"]
    {
        assert_eq!(with(&format!("4016={event}")), None, "{event}");
    }
    assert_eq!(with("6800=0 4016=8000030d"), None, "no error code in real mode");
}
