#![allow(unsafe_code)] // XGETBV can only be asked with an instruction of its own
//! The extended registers of a thread (x87, SSE, AVX, AVX-512, PKRU, …), brought from one CPU's layout into another's.
//!
//! ```text
//!   legacy area             512   x87, SSE; at 464 the kernel leaves XCR0 of the CPU that it comes from
//!   XSAVE header             64   which components follow
//!   components                    AVX, AVX-512, PKRU, … at the offsets of one CPU
//! ```
//!
//! `PTRACE_SETREGSET` takes only a whole area of the host's own size and layout.
//!
//! Source: `arch/x86/kernel/fpu/xstate.c` and `regset.c`; Intel's manual, volume 1, chapter 13.

use std::arch::x86_64::{__cpuid, __cpuid_count, _fxsave, _xgetbv};

/// Bytes of the legacy area and the XSAVE header: present on every CPU with XSAVE.
const HEADER_END: usize = 576;
/// Longest extended state that is looked at (AMX makes it 11 KiB): bounds what a hostile image can cost.
const LIMIT: usize = 64 << 10;

const MXCSR: usize = 24;
const MXCSR_MASK: usize = 28;
const SW_RESERVED: usize = 464;
const XSTATE_BV: usize = 512;
const XCOMP_BV: usize = 520;

/// x87 and SSE: in the legacy area, without an offset of their own.
const LEGACY: u64 = 0b11;
/// AMX tile data: the one component that a process must ask for (`ARCH_REQ_XCOMP_PERM`) before it may be loaded.
const TILE_DATA: u64 = 1 << 18;

/// Why a thread's extended state cannot be loaded here.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum XstateError {
    /// Bytes that are no extended state of any CPU.
    #[error("the extended register state is malformed ({0}); the image was damaged")]
    Malformed(&'static str),
    /// Well-formed, but its offsets are of no known family of CPUs.
    #[error(
        "the extended register state ({length} bytes, features {features:#x}) is of an unknown CPU; \
             restore on a host like the one it came from"
    )]
    UnknownLayout {
        /// In bytes.
        length: usize,
        /// XCR0 of the CPU that it came from.
        features: u64,
    },
    /// The thread has live values in registers that do not exist here.
    #[error("the program uses {0} registers, which this CPU does not offer; restore on a host that has them")]
    Unsupported(String),
}

/// Rewrites an extended state, as NT_X86_XSTATE gave it on some CPU, into the form that it has on this one: its component
/// offsets and its size. Nothing in `xstate` is trusted.
///
/// # Errors
/// [`XstateError::Unsupported`] names a component that holds values and does not exist here, or with another size.
pub fn adapt(xstate: &[u8]) -> Result<Vec<u8>, XstateError> {
    adapt_to(&Layout::here(), mxcsr_mask(), xstate)
}

fn adapt_to(here: &Layout, mxcsr_mask: u32, xstate: &[u8]) -> Result<Vec<u8>, XstateError> {
    use XstateError::{Malformed, UnknownLayout, Unsupported};
    if !(HEADER_END..=LIMIT).contains(&xstate.len()) {
        return Err(Malformed("impossible length"));
    }
    // The kernel leaves XCR0 of the source here (copy_xstate_to_uabi_buf() in arch/x86/kernel/fpu/xstate.c).
    let features = word(xstate, SW_RESERVED);
    let used = word(xstate, XSTATE_BV);
    if features & LEGACY != LEGACY || used & !features != 0 || word(xstate, XCOMP_BV) != 0 {
        return Err(Malformed("inconsistent header"));
    }
    let mxcsr = u32::from_le_bytes(xstate[MXCSR..MXCSR + 4].try_into().expect("four bytes"));
    if mxcsr & !mxcsr_mask != 0 {
        return Err(Malformed("reserved bits of MXCSR are set"));
    }
    // The bytes do not say where their components are, but there are few families, and their sizes tell them apart.
    let source = [
        here.restricted(features),
        Layout::intel(features),
        Layout::packed(features),
    ];
    let source = source
        .into_iter()
        .flatten()
        .find(|layout| layout.size() == xstate.len());
    let source = source.ok_or(UnknownLayout {
        length: xstate.len(),
        features,
    })?;

    let mut state = vec![0; here.size()];
    state[..SW_RESERVED].copy_from_slice(&xstate[..SW_RESERVED]);
    let mut kept = used & LEGACY;
    for component in source.components() {
        let from = source.range(component);
        // All zero is the initial state of each of these, which XRSTOR gives to what the header does not name.
        if used & 1 << component == 0 || xstate[from.clone()].iter().all(|byte| *byte == 0) {
            continue;
        }
        if here.features & 1 << component == 0 || here.range(component).len() != from.len() {
            return Err(Unsupported(name(component)));
        }
        state[here.range(component)].copy_from_slice(&xstate[from]);
        kept |= 1 << component;
    }
    state[XSTATE_BV..][..8].copy_from_slice(&kept.to_le_bytes());
    Ok(state)
}

/// Where the components of an XSAVE area in standard format are.
#[derive(Clone, Debug)]
struct Layout {
    /// XCR0's bits: the components that this layout has.
    features: u64,
    /// Offset and size of each component, by its number; of 0 and 1 unused.
    places: [(u32, u32); 64],
}

impl Layout {
    /// This CPU's, as far as the kernel lets any program use it without asking.
    fn here() -> Self {
        let mut layout = Self {
            features: xcr0() & !TILE_DATA,
            places: [(0, 0); 64],
        };
        for component in layout.components() {
            let leaf = __cpuid_count(0xd, component);
            layout.places[component as usize] = (leaf.ebx, leaf.eax);
        }
        layout
    }

    /// This layout on a CPU that offers only `features`, all of which it must have: offsets do not depend on what
    /// else is enabled.
    fn restricted(&self, features: u64) -> Option<Self> {
        (features & !self.features == 0).then_some(Self {
            features,
            places: self.places,
        })
    }

    /// Intel's fixed offsets: the same on every CPU, whether or not the components between are there.
    fn intel(features: u64) -> Option<Self> {
        let place = |component| match component {
            2 => Some((576, 256)),
            3 => Some((960, 64)),
            4 => Some((1024, 64)),
            5 => Some((1088, 64)),
            6 => Some((1152, 512)),
            7 => Some((1664, 1024)),
            9 => Some((2688, 8)),
            17 => Some((2752, 64)),
            18 => Some((2816, 8192)),
            19 => Some((960, 128)), // APX took the place of MPX
            _ => None,
        };
        Self::from_places(features, place)
    }

    /// AMD's: each component directly behind the one before it.
    fn packed(features: u64) -> Option<Self> {
        let mut next = HEADER_END as u32;
        Self::from_places(features, |component| {
            let size = match component {
                2 => 256,
                5 => 64,
                6 => 512,
                7 => 1024,
                9 => 8,
                _ => return None,
            };
            next += size;
            Some((next - size, size))
        })
    }

    fn from_places(features: u64, mut place: impl FnMut(u32) -> Option<(u32, u32)>) -> Option<Self> {
        let mut layout = Self {
            features,
            places: [(0, 0); 64],
        };
        for component in layout.components() {
            layout.places[component as usize] = place(component)?;
        }
        Some(layout)
    }

    /// The numbers of the components behind the header, ascending.
    fn components(&self) -> impl Iterator<Item = u32> + use<> {
        let features = self.features;
        (2..64).filter(move |component| features & 1 << component != 0)
    }

    fn range(&self, component: u32) -> std::ops::Range<usize> {
        let (offset, size) = self.places[component as usize];
        offset as usize..(offset + size) as usize
    }

    /// The whole area: what the kernel calls the user size, to the end of the last component.
    fn size(&self) -> usize {
        self.components()
            .map(|component| self.range(component).end)
            .fold(HEADER_END, usize::max)
    }
}

/// What the registers of a component are called, for people.
fn name(component: u32) -> String {
    let name = match component {
        2 => "AVX",
        3 | 4 => "MPX",
        5 => "AVX-512 mask",
        6 => "AVX-512 (upper halves of zmm0-15)",
        7 => "AVX-512 (zmm16-31)",
        9 => "protection key (PKRU)",
        17 => "AMX tile configuration",
        18 => "AMX tile",
        19 => "APX general",
        other => return format!("XSAVE component {other}"),
    };
    name.to_owned()
}

fn word(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().expect("eight bytes"))
}

/// The components that the kernel has enabled; the legacy two where there is no XSAVE.
fn xcr0() -> u64 {
    const OSXSAVE: u32 = 1 << 27;
    if __cpuid(1).ecx & OSXSAVE == 0 {
        return LEGACY;
    }
    // SAFETY: OSXSAVE says that the kernel has enabled XGETBV for programs; register 0 always exists then.
    unsafe { _xgetbv(0) }
}

/// The bits of MXCSR that may be set on this CPU; any other makes XRSTOR fault.
fn mxcsr_mask() -> u32 {
    #[repr(C, align(16))]
    struct Area([u8; 512]);
    let mut area = Area([0; 512]);
    // SAFETY: FXSAVE is in the x86_64 baseline; it writes 512 bytes to an address aligned to 16, which `Area` is.
    unsafe { _fxsave(area.0.as_mut_ptr()) };
    match u32::from_le_bytes(area.0[MXCSR_MASK..MXCSR_MASK + 4].try_into().expect("four bytes")) {
        0 => 0xffbf, // the manual's default for CPUs that do not say
        mask => mask,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An extended state as the kernel would give it for `layout`, every component in use, with recognizable bytes.
    fn sample(layout: &Layout) -> Vec<u8> {
        let mut state = vec![0; layout.size()];
        state[0..2].copy_from_slice(&0x037f_u16.to_le_bytes()); // x87 control word
        state[MXCSR..MXCSR + 4].copy_from_slice(&0x1fa0_u32.to_le_bytes()); // precision exception flagged
        for (index, byte) in state[160..416].iter_mut().enumerate() {
            *byte = index as u8 ^ 0x5a; // xmm0-15
        }
        for component in layout.components() {
            for (index, byte) in state[layout.range(component)].iter_mut().enumerate() {
                *byte = (index as u8).wrapping_mul(7) ^ component as u8;
            }
        }
        if layout.features & 1 << 9 != 0 {
            state[layout.range(9)].copy_from_slice(&0x5555_5550_u64.to_le_bytes()); // key 0 and 1 open
        }
        // MPX and the AMX configuration fault on arbitrary values.
        let used = layout.features & !(1 << 3 | 1 << 4 | 1 << 17);
        state[SW_RESERVED..][..8].copy_from_slice(&layout.features.to_le_bytes());
        state[XSTATE_BV..][..8].copy_from_slice(&used.to_le_bytes());
        state
    }

    #[test]
    fn the_kernel_gives_what_is_expected() {
        // SAFETY: the child only makes system calls; the parent waits for it and ends it.
        let state = unsafe {
            let child = libc::fork();
            assert!(child >= 0);
            if child == 0 {
                libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
                libc::raise(libc::SIGSTOP);
                libc::_exit(0);
            }
            assert_eq!(libc::waitpid(child, std::ptr::null_mut(), libc::__WALL), child);
            let mut state = vec![0_u8; LIMIT];
            let mut iovec = libc::iovec {
                iov_base: state.as_mut_ptr().cast(),
                iov_len: state.len(),
            };
            assert_eq!(libc::ptrace(libc::PTRACE_GETREGSET, child, 0x202, &raw mut iovec), 0);
            libc::kill(child, libc::SIGKILL);
            libc::waitpid(child, std::ptr::null_mut(), libc::__WALL);
            state.truncate(iovec.iov_len);
            state
        };
        assert_eq!(word(&state, SW_RESERVED), xcr0());
        assert_eq!(adapt(&state).unwrap().len(), Layout::here().size());
    }

    #[test]
    fn other_families_are_converted() {
        let features = 0b10_1110_0111; // AVX, AVX-512, PKRU
        let (intel, amd) = (Layout::intel(features).unwrap(), Layout::packed(features).unwrap());
        assert_eq!((intel.size(), amd.size()), (2696, 2440));
        let adapted = adapt_to(&amd, 0xffff, &sample(&intel)).unwrap();
        for component in intel.components() {
            assert_eq!(adapted[amd.range(component)], sample(&intel)[intel.range(component)]);
        }
        // To a CPU with fewer components: only what is in use must exist.
        let small = Layout::packed(0b10_0000_0111).unwrap();
        let error = adapt_to(&small, 0xffff, &sample(&intel)).unwrap_err();
        assert_eq!(error, XstateError::Unsupported("AVX-512 mask".to_owned()));
        let mut unused = sample(&intel);
        unused[XSTATE_BV] = 0b111;
        assert_eq!(adapt_to(&small, 0xffff, &unused).unwrap().len(), small.size());
        let mut zero = sample(&intel);
        zero[intel.range(5)].fill(0);
        zero[intel.range(6)].fill(0);
        zero[intel.range(7)].fill(0);
        assert_eq!(
            word(&adapt_to(&small, 0xffff, &zero).unwrap(), XSTATE_BV),
            0b10_0000_0111
        );
    }

    #[test]
    fn hostile_states_are_refused() {
        let good = sample(&Layout::here());
        assert!(adapt(&good).is_ok());
        assert!(matches!(adapt(&good[..HEADER_END - 1]), Err(XstateError::Malformed(_))));
        assert!(matches!(adapt(&vec![0; LIMIT + 1]), Err(XstateError::Malformed(_))));
        assert!(matches!(
            adapt(&good[..good.len() - 1]),
            Err(XstateError::UnknownLayout { .. })
        ));
        for (offset, value) in [
            (SW_RESERVED, 0),
            (XSTATE_BV + 7, 0x80),
            (XCOMP_BV + 7, 0x80),
            (MXCSR + 3, 0xff),
        ] {
            let mut bad = good.clone();
            bad[offset] = value;
            assert!(matches!(adapt(&bad), Err(XstateError::Malformed(_))), "{offset}");
        }
        let mut unknown = good;
        unknown[SW_RESERVED + 7] = 0x7f;
        assert!(matches!(adapt(&unknown), Err(XstateError::UnknownLayout { .. })));
    }
}
