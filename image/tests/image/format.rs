//! Round trips, the golden image, and the rules of the writer.

use std::fs;
use std::io::{self, Write};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use vrun_image::state::{FileKind, Job};
use vrun_image::{Error, Kind, MAX_RUN, PAGE, Reader, Record, Totals, Writer};

use crate::jobs::{any_job, small, small_image};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v1.vimg");

/// A run that owns its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Run {
    Pages(u32, u64, Vec<u8>),
    File(u32, u64, Vec<u8>),
}

fn write(job: &Job, runs: &[Run]) -> Result<(Vec<u8>, Totals), Error> {
    let mut writer = Writer::new(Vec::new())?;
    writer.job(job)?;
    for run in runs {
        match run {
            Run::Pages(process, start, bytes) => writer.pages(*process, *start, bytes)?,
            Run::File(file, offset, bytes) => writer.file(*file, *offset, bytes)?,
        }
    }
    writer.finish()
}

/// Reads an image that must be the whole input.
fn read(image: &[u8]) -> Result<(Job, Vec<Run>, Totals), Error> {
    let mut reader = Reader::new(image)?;
    let Record::Job(job) = reader.next()? else {
        panic!("the first record is not the job")
    };
    let mut runs = Vec::new();
    let totals = loop {
        runs.push(match reader.next()? {
            Record::Pages { process, start, bytes } => Run::Pages(process, start, bytes.to_vec()),
            Record::File { file, offset, bytes } => Run::File(file, offset, bytes.to_vec()),
            Record::End(totals) => break totals,
            Record::Job(_) => panic!("a second job was accepted"),
        });
    };
    let position = reader.position();
    reader.expect_eof()?;
    assert_eq!(position, image.len() as u64);
    Ok((*job, runs, totals))
}

/// A run inside the area or file that the indices choose, if the job has one.
fn run(job: &Job, [process, thing, place]: [Index; 3], pages: bool, fill: u8) -> Option<Run> {
    let run = if pages {
        let number = process.index(job.processes.len());
        let process = &job.processes[number];
        let areas = &process.memory.areas;
        let area = (!areas.is_empty()).then(|| &areas[thing.index(areas.len())])?;
        let start = area.start + place.index(((area.end - area.start) / PAGE) as usize) as u64 * PAGE;
        let length = (area.end - start).min(PAGE * (1 + u64::from(fill % 3)));
        Run::Pages(number as u32, start, vec![fill; length as usize])
    } else {
        let file = thing.index(job.files.len());
        let FileKind::Regular(regular) = &job.files[file].kind else {
            return None;
        };
        let size = (regular.stored && regular.size != 0).then_some(regular.size)?;
        let offset = place.index(size as usize) as u64;
        let length = (size - offset).min(1 + u64::from(fill) * 100);
        Run::File(file as u32, offset, vec![fill; length as usize])
    };
    Some(run)
}

proptest! {
    #[test]
    fn what_is_written_is_read(job in any_job(), seeds in vec(any::<([Index; 3], bool, u8)>(), 0..12)) {
        let runs: Vec<_> = seeds.iter().filter_map(|(places, pages, fill)| run(&job, *places, *pages, *fill)).collect();
        let (image, written) = write(&job, &runs).unwrap();
        prop_assert_eq!(written.sections, 1 + runs.len() as u64);
        prop_assert_eq!(read(&image).unwrap(), (job, runs, written));
    }
}

#[test]
fn compressed_runs_are_read_as_they_were_written() {
    let noise = (0..PAGE as u32)
        .map(|at| (at.wrapping_mul(0x9e37_79b9) >> 13) as u8)
        .collect();
    let runs = [
        Run::Pages(0, 0x60_0000, vec![7; 2 * PAGE as usize]),
        Run::Pages(0, 0x60_2000, noise),
        Run::File(1, 1, b"ell".to_vec()),
    ];
    let mut writer = Writer::new(Vec::new()).unwrap();
    writer.compress(1).unwrap();
    writer.job(&small()).unwrap();
    for run in &runs {
        match run {
            Run::Pages(process, start, bytes) => writer.pages(*process, *start, bytes).unwrap(),
            Run::File(file, offset, bytes) => writer.file(*file, *offset, bytes).unwrap(),
        }
    }
    let (image, totals) = writer.finish().unwrap();
    let plain = write(&small(), &runs).unwrap().0;
    assert!(image.len() < plain.len() - PAGE as usize);
    assert_eq!(read(&image).unwrap(), (small(), runs.to_vec(), totals));
}

#[test]
fn the_format_has_not_changed() {
    let golden = fs::read(GOLDEN).unwrap();
    let (job, runs, _) = read(&golden).unwrap();
    assert_eq!(job, small());
    assert_eq!(runs.len(), 4);
    assert!(
        golden == small_image(),
        "the format changed: it needs a new version, and a golden image of that version"
    );
}

#[test]
#[ignore = "writes the golden image: for a new version of the format only"]
fn write_golden() {
    fs::write(GOLDEN, small_image()).unwrap();
}

#[test]
fn a_run_may_have_a_mebibyte_and_no_more() {
    let mut job = small();
    let areas = &mut job.processes[0].memory.areas;
    areas.drain(3..5);
    areas[2].end += 2 << 20;
    let mut writer = Writer::new(Vec::new()).unwrap();
    writer.job(&job).unwrap();
    writer.pages(0, 0x60_0000, &vec![1; MAX_RUN]).unwrap();
    let error = writer
        .pages(0, 0x60_0000, &vec![1; MAX_RUN + PAGE as usize])
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::Oversized {
                section: 3,
                kind: Kind::Pages,
                ..
            }
        ),
        "{error}"
    );
    let (image, totals) = writer.finish().unwrap();
    assert_eq!(
        totals,
        Totals {
            sections: 2,
            page_bytes: 1 << 20,
            file_bytes: 0
        }
    );
    assert_eq!(read(&image).unwrap().2, totals);
}

#[test]
fn the_writer_refuses_what_a_reader_would() {
    let page = [0; PAGE as usize];
    let mut writer = Writer::new(Vec::new()).unwrap();
    let refused = |result: Result<(), Error>, why: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(why), "{error:?} does not say {why:?}");
    };
    refused(writer.pages(0, 0x60_0000, &page), "must be the Job");
    refused(
        writer.job(&Job {
            id: String::new(),
            ..small()
        }),
        "the id must be",
    );
    writer.job(&small()).unwrap();
    refused(writer.job(&small()), "a second one");
    refused(
        writer.pages(8, 0x60_0000, &page),
        "process 8, which the job does not have",
    );
    // Behind the two processes: an open file's memory, a shared one's end.
    refused(writer.pages(3, 0, &page), "inside one area");
    refused(writer.pages(2, 0x2000, &page), "inside one area");
    refused(writer.pages(0, 0x60_0001, &page), "begins inside a page");
    refused(writer.pages(0, 0x60_0000, &page[1..]), "whole pages");
    refused(writer.pages(0, 0x60_0000, &[]), "whole pages");
    refused(writer.pages(0, 0x5f_f000, &page), "inside one area");
    refused(writer.pages(0, 0, &page), "inside one area");
    refused(writer.pages(0, u64::MAX - PAGE + 1, &page), "inside one area");
    refused(writer.pages(0, 0x40_1000, &[0; 2 * PAGE as usize]), "inside one area");
    refused(writer.file(0, 0, b"x"), "not marked as stored");
    refused(writer.file(99, 0, b"x"), "not marked as stored");
    refused(writer.file(1, 0, b""), "is empty");
    refused(writer.file(1, 4, b"xy"), "is not in its 5 bytes");
    refused(writer.file(1, u64::MAX, b"x"), "is not in its 5 bytes");
    refused(Writer::new(Vec::new()).unwrap().finish().map(drop), "must be the Job");
}

#[test]
fn a_full_disk_is_the_source_of_the_error() {
    struct Full(usize);
    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let length = bytes.len().min(self.0);
            self.0 -= length;
            if length == 0 {
                Err(io::ErrorKind::StorageFull.into())
            } else {
                Ok(length)
            }
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut writer = Writer::new(Full(100)).unwrap();
    let error = writer.job(&small()).unwrap_err();
    assert!(
        matches!(&error, Error::Io(source) if source.kind() == io::ErrorKind::StorageFull),
        "{error:?}"
    );
}

#[test]
fn a_connection_goes_on_after_the_image() {
    let stream = [&small_image()[..], b"next"].concat();
    let mut reader = Reader::new(&stream[..]).unwrap();
    while !matches!(reader.next().unwrap(), Record::End(_)) {}
    assert!(
        matches!(reader.next(), Err(Error::Invalid(_))),
        "there is nothing after the end"
    );
    assert_eq!(reader.into_inner(), b"next");
    let error = read(&stream).unwrap_err();
    assert!(error.to_string().contains("something follows"), "{error}");
}

#[test]
fn the_end_is_not_asked_for_early() {
    let error = Reader::new(&small_image()[..]).unwrap().expect_eof().unwrap_err();
    assert!(error.to_string().contains("before its End section was read"), "{error}");
}
