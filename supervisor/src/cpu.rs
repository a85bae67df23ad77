//! What instructions a program may have found on its CPU, and whether another CPU has them too.
//!
//! A program looks once, at start (CPUID, ifunc resolvers), and keeps what it found in memory. So every instruction
//! set that it *could* have found must exist wherever it goes. A group of hosts with different CPUs can agree on what
//! all of them have, and hide the rest (`hide` in the configuration). Hiding changes what a host says, not what CPUID
//! says: whoever hides a set on the host where programs start promises that they do not use it (`GLIBC_TUNABLES`,
//! how they were compiled).

use std::io;

use vrun_image::state::CpuFeatures;

/// The flags of `/proc/cpuinfo` that name instructions an ordinary program can execute, sorted.
///
/// Left out on purpose: what only the kernel can use (`smep`, `xsaves`, …); hints that older CPUs execute as nothing
/// (`hle`, `cldemote`); what is only a promise of speed (`erms`, `fsrm`); `mpx`, which is abandoned and whose
/// registers are checked with the extended state if one program should still use them.
///
/// Source: `arch/x86/include/asm/cpufeatures.h`.
const INSTRUCTIONS: &[&str] = &[
    "3dnow",
    "3dnowext",
    "3dnowprefetch",
    "abm",
    "adx",
    "aes",
    "amx_bf16",
    "amx_fp16",
    "amx_int8",
    "amx_tile",
    "apx",
    "avx",
    "avx2",
    "avx512_4fmaps",
    "avx512_4vnniw",
    "avx512_bf16",
    "avx512_bitalg",
    "avx512_fp16",
    "avx512_vbmi2",
    "avx512_vnni",
    "avx512_vp2intersect",
    "avx512_vpopcntdq",
    "avx512bw",
    "avx512cd",
    "avx512dq",
    "avx512er",
    "avx512f",
    "avx512ifma",
    "avx512pf",
    "avx512vbmi",
    "avx512vl",
    "avx_ifma",
    "avx_vnni",
    "bmi1",
    "bmi2",
    "clflush",
    "clflushopt",
    "clwb",
    "clzero",
    "cmov",
    "cmpccxadd",
    "cx16",
    "cx8",
    "enqcmd",
    "f16c",
    "fma",
    "fma4",
    "fpu",
    "fsgsbase",
    "fxsr",
    "fxsr_opt",
    "gfni",
    "lahf_lm",
    "lwp",
    "mmx",
    "mmxext",
    "movbe",
    "movdir64b",
    "movdiri",
    "mwaitx",
    "ospke",
    "pclmulqdq",
    "pku",
    "pni",
    "popcnt",
    "ptwrite",
    "rdpid",
    "rdpru",
    "rdrand",
    "rdseed",
    "rdtscp",
    "rtm",
    "serialize",
    "sha512",
    "sha_ni",
    "sm3",
    "sm4",
    "sse",
    "sse2",
    "sse4_1",
    "sse4_2",
    "sse4a",
    "ssse3",
    "syscall",
    "tbm",
    "tsc",
    "user_shstk",
    "vaes",
    "vpclmulqdq",
    "waitpkg",
    "xgetbv1",
    "xop",
    "xsave",
    "xsavec",
    "xsaveopt",
];

/// This host's features, without the flags named in `hide` (names as in `/proc/cpuinfo`; unknown ones do nothing).
///
/// # Errors
/// `/proc/cpuinfo` cannot be read.
pub fn features(hide: &[String]) -> io::Result<CpuFeatures> {
    Ok(parse(&String::from_utf8_lossy(&std::fs::read("/proc/cpuinfo")?), hide))
}

/// [`features`] of a host whose `/proc/cpuinfo` is `text`.
///
/// A program may run on any processor of the host, so only what all of them have counts.
fn parse(text: &str, hide: &[String]) -> CpuFeatures {
    let values = |key: &'static str| {
        text.lines()
            .filter_map(|line| line.split_once(':'))
            .filter(move |(name, _)| name.trim() == key)
            .map(|(_, value)| value.trim())
    };
    let processors: Vec<Vec<&str>> = values("flags")
        .map(|flags| flags.split_ascii_whitespace().collect())
        .collect();
    let everywhere = |flag: &str| !processors.is_empty() && processors.iter().all(|flags| flags.contains(&flag));
    let flags = INSTRUCTIONS
        .iter()
        .filter(|flag| everywhere(flag) && !hide.iter().any(|hidden| hidden == *flag));
    CpuFeatures {
        vendor: values("vendor_id").next().unwrap_or_default().to_owned(),
        model: values("model name").next().unwrap_or_default().to_owned(),
        flags: flags.map(|flag| (*flag).to_owned()).collect(),
    }
}

/// The instruction sets of `needed` that `here` lacks, in their order; empty if a program from there can run here.
pub fn missing(needed: &CpuFeatures, here: &CpuFeatures) -> Vec<String> {
    needed
        .flags
        .iter()
        .filter(|flag| !here.flags.contains(flag))
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Some CPU: 2.5GHz\n\
        flags\t\t: fpu sse sse2 avx avx512f smep popcnt xsaves erms\nvmx flags\t: vnmi\nbugs\t\t: spectre_v1\n\n\
        processor\t: 1\nvendor_id\t: GenuineIntel\nflags\t\t: fpu sse sse2 avx smep popcnt aes\n";

    #[test]
    fn names_what_all_processors_offer_to_programs() {
        let features = parse(SAMPLE, &[]);
        assert_eq!(
            (features.vendor.as_str(), features.model.as_str()),
            ("GenuineIntel", "Some CPU: 2.5GHz")
        );
        assert_eq!(features.flags, ["avx", "fpu", "popcnt", "sse", "sse2"]);
        assert_eq!(parse("", &[]), CpuFeatures::default());
    }

    #[test]
    fn hidden_features_are_missed() {
        let all = parse(SAMPLE, &[]);
        let some = parse(SAMPLE, &["avx".to_owned(), "nonsense".to_owned()]);
        assert_eq!(missing(&all, &some), ["avx"]);
        assert_eq!(missing(&some, &all), [""; 0]);
    }

    #[test]
    fn this_host_can_run_its_own_programs() {
        let here = features(&[]).unwrap();
        assert!(here.flags.iter().any(|flag| flag == "sse2") && !here.vendor.is_empty());
        assert!(missing(&here, &here).is_empty());
    }

    #[test]
    fn the_table_is_sorted_and_unique() {
        assert!(INSTRUCTIONS.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
