//! Damaged and malicious images: each is an error of the right kind, never a panic.

use proptest::prelude::*;
use vrun_image::format::{MAGIC, MAX_JOB};
use vrun_image::{Error, Kind, PAGE, Reader, Record, VERSION, inspect};

use crate::jobs::{small, small_image};

/// The version of a Job section.
const JOB: u16 = Kind::Job.version();

/// A section as the specification has it, whatever it holds.
fn section(kind: u16, version: u16, body: &[u8]) -> Vec<u8> {
    let head = [kind.to_le_bytes(), version.to_le_bytes()].concat();
    let length = (body.len() as u64).to_le_bytes();
    let crc = crc32fast::hash(&[&head, &length[..], body].concat());
    [&head, &crc.to_le_bytes()[..], &length, body].concat()
}

fn image(sections: &[Vec<u8>]) -> Vec<u8> {
    [&MAGIC[..], &VERSION.to_le_bytes(), &sections.concat()].concat()
}

/// bincode's default of fixed-width little-endian integers is the image's encoding.
fn job() -> Vec<u8> {
    section(1, JOB, &bincode::serialize(&small()).unwrap())
}

fn pages(process: u32, start: u64, length: usize) -> Vec<u8> {
    section(
        2,
        1,
        &[&process.to_le_bytes()[..], &start.to_le_bytes(), &vec![7; length]].concat(),
    )
}

fn file(file: u32, offset: u64, content: &[u8]) -> Vec<u8> {
    section(
        3,
        1,
        &[&file.to_le_bytes()[..], &[0; 4], &offset.to_le_bytes(), content].concat(),
    )
}

fn end(totals: [u64; 3]) -> Vec<u8> {
    section(4, 1, &totals.map(u64::to_le_bytes).concat())
}

fn read(image: &[u8]) -> Result<(), Error> {
    let mut reader = Reader::new(image)?;
    while !matches!(reader.next()?, Record::End(_)) {}
    reader.expect_eof().map(drop)
}

#[test]
fn the_specification_is_what_is_read() {
    let runs = [pages(0, 0x60_0000, 4096), file(1, 1, b"ell")];
    read(&image(&[job(), runs.concat(), end([3, 4096, 3])])).unwrap();
}

#[test]
fn every_truncation_is_told() {
    let image = small_image();
    for length in 0..image.len() {
        let error = read(&image[..length]).unwrap_err();
        assert!(
            matches!(error, Error::Truncated { .. }),
            "{length} of {} bytes: {error:?}",
            image.len()
        );
    }
}

#[test]
fn every_changed_byte_is_found() {
    let mut image = small_image();
    for at in 0..image.len() {
        for change in [0x01, 0x80, 0xff] {
            image[at] ^= change;
            assert!(read(&image).is_err(), "byte {at} changed by {change:#x} was accepted");
            image[at] ^= change;
        }
    }
    read(&image).unwrap();
}

#[test]
fn damage_has_a_place() {
    let mut image = image(&[job(), pages(0, 0x60_0000, 4096), end([2, 4096, 0])]);
    let at = 12 + job().len();
    image[at + 1000] ^= 1;
    let error = read(&image).unwrap_err();
    let place = at as u64;
    assert!(
        matches!(error, Error::Corrupt { section: 2, kind: Kind::Pages, offset } if offset == place),
        "{error:?}"
    );
}

#[test]
fn other_files_and_versions_are_told_apart() {
    assert!(matches!(read(b"\x7fELF").unwrap_err(), Error::NotAnImage));
    assert!(matches!(read(b"").unwrap_err(), Error::Truncated { section: 0, .. }));
    let newer = [&MAGIC[..], &2_u32.to_le_bytes()].concat();
    assert!(matches!(read(&newer).unwrap_err(), Error::OtherVersion { found: 2 }));
    let error = read(&image(&[section(1, JOB + 1, b"")])).unwrap_err();
    assert!(
        matches!(
            error,
            Error::OtherSectionVersion {
                section: 1,
                kind: Kind::Job,
                found,
                known: JOB
            } if found == JOB + 1
        ),
        "{error:?}"
    );
    for kind in [0, 7, u16::MAX] {
        let error = read(&image(&[job(), section(kind, 1, b"")])).unwrap_err();
        assert!(
            matches!(error, Error::UnknownKind { section: 2, found, .. } if found == kind),
            "{error:?}"
        );
    }
}

#[test]
fn lengths_are_judged_before_they_are_believed() {
    let run = 1 << 20;
    let caps = [MAX_JOB, run + 12, run + 16, 24, run + 12, run + 16];
    for (kind, cap) in (1_u16..).zip(caps) {
        for length in [cap + 1, u64::MAX] {
            let version = if kind == Kind::Job as u16 { JOB } else { 1 };
            let head = [
                &kind.to_le_bytes()[..],
                &version.to_le_bytes(),
                &[0; 4],
                &length.to_le_bytes(),
            ]
            .concat();
            let error = read(&image(&[head])).unwrap_err();
            assert!(matches!(error, Error::Oversized { section: 1, .. }), "{error:?}");
        }
    }
}

#[test]
fn order_and_references_are_checked() {
    let run = || pages(0, 0x60_0000, PAGE as usize);
    let cases = [
        (image(&[run()]), "first section is Pages"),
        (image(&[end([0; 3])]), "first section is End"),
        (image(&[job(), job()]), "second Job"),
        (image(&[job(), run(), end([1, 4096, 0])]), "was lost or added"),
        (image(&[job(), run(), end([2, 0, 0])]), "was lost or added"),
        (image(&[job(), end([1, 0, 1])]), "was lost or added"),
        (image(&[job(), section(4, 1, &[0; 23])]), "23 bytes instead of 24"),
        (image(&[job(), section(2, 1, &[0; 11])]), "too short"),
        (image(&[job(), section(3, 1, &[0; 15])]), "too short"),
        (image(&[job(), pages(0, 0x60_0000, 0)]), "whole pages"),
        (image(&[job(), pages(0, 0x60_0000, 100)]), "whole pages"),
        (image(&[job(), pages(0, 0x60_0800, 4096)]), "begins inside a page"),
        (image(&[job(), pages(0, 0x60_3000, 8192)]), "inside one area"),
        (image(&[job(), pages(u32::MAX, 0x60_0000, 4096)]), "does not have"),
        (
            image(&[job(), pages(0, 0xffff_ffff_ffff_f000, 4096)]),
            "inside one area",
        ),
        (image(&[job(), file(1, 5, b"x")]), "is not in its 5 bytes"),
        (image(&[job(), file(1, u64::MAX, b"x")]), "is not in its 5 bytes"),
        (image(&[job(), file(2, 0, b"x")]), "not marked as stored"),
        (image(&[job(), file(u32::MAX, 0, b"x")]), "not marked as stored"),
        (
            image(&[section(
                1,
                JOB,
                &[bincode::serialize(&small()).unwrap(), vec![0]].concat(),
            )]),
            "cannot be decoded",
        ),
        (image(&[section(1, JOB, b"")]), "cannot be decoded"),
        (image(&[job(), end([1, 0, 0]), vec![0]]), "something follows"),
    ];
    for (image, why) in cases {
        let error = read(&image).unwrap_err();
        assert!(
            matches!(error, Error::Invalid(_)) && error.to_string().contains(why),
            "{error:?} is not {why:?}"
        );
    }
}

/// As a Pages or File section that is compressed.
fn packed(kind: u16, prefix: &[u8], content: &[u8]) -> Vec<u8> {
    let frame = zstd::bulk::compress(content, 3).unwrap();
    section(kind, 1, &[prefix, &frame].concat())
}

#[test]
fn packed_runs_are_judged_unpacked() {
    let pages = |start: u64, length| {
        let prefix = [&0_u32.to_le_bytes()[..], &start.to_le_bytes()].concat();
        packed(5, &prefix, &vec![7; length])
    };
    let file = |offset: u64, content| {
        let prefix = [&1_u64.to_le_bytes()[..], &offset.to_le_bytes()].concat();
        packed(6, &prefix, content)
    };
    read(&image(&[
        job(),
        pages(0x60_0000, 4096),
        file(1, b"ell"),
        end([3, 4096, 3]),
    ]))
    .unwrap();
    let cases = [
        (pages(0x60_0000, 100), "whole pages"),
        (pages(0x60_0000, 0x5000), "inside one area"),
        (pages(0x60_0000, (1 << 20) + 4096), "cannot be unpacked"),
        (pages(0x60_0000, 64 << 20), "cannot be unpacked"),
        (section(5, 1, &[0; 11]), "too short"),
        (section(5, 1, &[0; 12]), "not a number of whole pages"),
        (section(5, 1, &[0; 20]), "cannot be unpacked"),
        (file(4, b"xy"), "is not in its 5 bytes"),
        (section(6, 1, &[0; 15]), "too short"),
    ];
    for (run, why) in cases {
        let error = read(&image(&[job(), run])).unwrap_err();
        assert!(error.to_string().contains(why), "{error:?} is not {why:?}");
    }
}

#[test]
fn after_an_error_nothing_is_believed() {
    let bytes = image(&[job(), pages(0, 0, 4096), pages(0, 0x60_0000, 4096)]);
    let mut reader = Reader::new(&bytes[..]).unwrap();
    reader.next().unwrap();
    reader.next().unwrap_err();
    assert!(matches!(reader.next(), Err(Error::Invalid(_))));
}

proptest! {
    #[test]
    fn noise_is_refused(noise in prop::collection::vec(any::<u8>(), 0..2000)) {
        prop_assert!(read(&noise).is_err());
        prop_assert!(read(&image(std::slice::from_ref(&noise))).is_err());
        prop_assert!(read(&image(&[job(), noise])).is_err());
    }

    /// The checksum is right, what it covers is not: this reaches the decoder and the rules behind it.
    #[test]
    fn a_forged_job_is_refused_or_valid(changes in prop::collection::vec(any::<(prop::sample::Index, u8)>(), 1..4)) {
        let mut body = bincode::serialize(&small()).unwrap();
        for (at, value) in changes {
            let at = at.index(body.len());
            body[at] = value;
        }
        let forged = image(&[section(1, JOB, &body), end([1, 0, 0])]);
        let accepted = read(&forged).is_ok();
        prop_assert_eq!(inspect(&forged[..]).map(|report| report.to_string()).is_ok(), accepted);
    }

    #[test]
    fn a_body_of_noise_is_refused(kind in 1..7_u16, noise in prop::collection::vec(any::<u8>(), 0..2000)) {
        prop_assert!(read(&image(&[section(kind, 1, &noise)])).is_err());
        // A File's run of noise would have to name file 1.
        prop_assert!(read(&image(&[job(), section(kind, 1, &noise), end([2, 0, 0])])).is_err());
    }
}
