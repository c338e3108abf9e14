//! Files, decoded again.

use super::super::report::tests::{GROW, MAIN, hand_made, profile, row, service};
use super::*;
use flate2::read::GzDecoder;
use std::io::Read;

fn decoded(pprof: Pprof<'_>) -> Proto {
    let mut file = Vec::new();
    pprof.write(&mut file).unwrap();
    let mut message = Vec::new();
    GzDecoder::new(&file[..]).read_to_end(&mut message).unwrap();
    Proto::decode(&message[..]).unwrap()
}

impl Proto {
    fn str(&self, place: i64) -> &str {
        &self.string_table[usize::try_from(place).unwrap()]
    }

    fn location(&self, id: u64) -> &Location {
        self.location.iter().find(|location| location.id == id).unwrap()
    }

    /// The functions of a sample, innermost first.
    fn functions(&self, sample: &Sample) -> Vec<&str> {
        let locations = sample.location_id.iter().map(|id| self.location(*id));
        locations
            .flat_map(|location| &location.line)
            .map(|line| self.str(self.name(line.function_id)))
            .collect()
    }

    fn name(&self, id: u64) -> i64 {
        self.function.iter().find(|function| function.id == id).unwrap().name
    }

    fn service(&self, sample: &Sample) -> &str {
        self.str(sample.label.iter().find(|label| label.str != 0).unwrap().str)
    }

    fn sum(&self, value: usize) -> i64 {
        self.sample.iter().map(|sample| sample.value[value]).sum()
    }
}

#[test]
fn a_file_has_gos_sample_types_and_all_rows() {
    for (kind, default, values) in [(Kind::Live, "inuse_space", 2), (Kind::Allocated, "alloc_space", 0)] {
        let profile = hand_made(kind);
        let proto = decoded(profile.pprof());
        let types: Vec<_> =
            proto.sample_type.iter().map(|kind| (proto.str(kind.kind), proto.str(kind.unit))).collect();
        assert_eq!(
            types,
            [
                ("alloc_objects", "count"),
                ("alloc_space", "bytes"),
                ("inuse_objects", "count"),
                ("inuse_space", "bytes"),
            ]
        );
        assert_eq!(proto.str(proto.default_sample_type), default);
        let period = proto.period_type.unwrap();
        assert_eq!(
            (proto.str(period.kind), proto.str(period.unit), proto.period),
            ("space", "bytes", 512 << 10)
        );
        assert_eq!((proto.time_nanos, proto.duration_nanos), (1_030_000_000_000, 30_000_000_000));
        assert_eq!(proto.string_table[0], "");
        assert_eq!(proto.drop_frames, 0);

        assert_eq!(proto.sample.len(), profile.rows.len());
        assert_eq!((proto.sum(values), proto.sum(values + 1)), (profile.objects(), profile.bytes()));
        assert_eq!((proto.sum(2 - values), proto.sum(3 - values)), (0, 0));
        for (sample, row) in proto.sample.iter().zip(&profile.rows) {
            assert_eq!(sample.value[values..values + 2], [row.objects, row.bytes]);
            assert_eq!(proto.service(sample), row.service);
            let mut functions = proto.functions(sample);
            functions.reverse();
            assert_eq!(functions, profile.titles(row));
            // No sample is in the total and in no line.
            assert!(!sample.location_id.is_empty());
            // Once for the sample, not for each frame.
            let services =
                sample.label.iter().filter(|label| proto.str(label.key) == "service" && label.str != 0);
            assert_eq!(services.count(), 1);
            let handle = sample.label.iter().find(|label| proto.str(label.key) == "handle").unwrap();
            assert_eq!(handle.num, i64::from(row.handle));
        }
    }
}

#[test]
fn inlined_functions_are_lines_of_one_location_of_the_mapping() {
    let profile = hand_made(Kind::Live);
    let proto = decoded(profile.pprof());
    let sample = proto.sample.iter().find(|sample| proto.functions(sample).len() == 6).unwrap();
    let locations: Vec<_> = sample.location_id.iter().map(|id| proto.location(*id)).collect();
    assert_eq!(locations.iter().map(|location| location.line.len()).collect::<Vec<_>>(), [1, 2, 2, 1]);
    // The call, not where it returns to; each once.
    assert_eq!(locations[0].address, GROW as u64 - 1);
    assert_eq!(locations[1], locations[2]);
    assert_eq!(locations[1].line.iter().map(|line| line.line).collect::<Vec<_>>(), [7, 17]);
    let mapping = proto.mapping[0];
    assert!(locations.iter().all(|location| location.mapping_id == mapping.id));
    assert_eq!((mapping.memory_start, mapping.memory_limit, mapping.file_offset), (0x1000, 0x9000, 0x100));
    assert_eq!((proto.str(mapping.filename), proto.str(mapping.build_id)), ("/app/app", "01ab"));
    assert!(mapping.has_functions && mapping.has_inline_frames);
    let file =
        proto.function.iter().find(|function| proto.str(function.name) == "app::Index::insert").unwrap();
    assert_eq!(proto.str(file.filename), "/app/src/index.rs");
    for location in &proto.location {
        assert_eq!(proto.location.iter().filter(|other| other.id == location.id).count(), 1);
    }
}

#[test]
fn without_names_there_are_addresses_mappings_and_build_ids() {
    let profile = hand_made(Kind::Live);
    let proto = decoded(profile.pprof().without_names());
    let sample = &proto.sample[0];
    assert_eq!(sample.location_id.len(), 3);
    for (id, address) in sample.location_id.iter().zip(profile.rows[0].origin.stack()) {
        let location = proto.location(*id);
        assert_eq!((location.address, location.mapping_id), (*address as u64 - 1, 1));
        assert!(location.line.is_empty());
    }
    assert!(!proto.mapping[0].has_functions);
    assert_eq!(proto.str(proto.mapping[0].build_id), "01ab");
    assert!(proto.str(proto.drop_frames).contains("malloc"));
    assert_eq!(proto.sum(3), profile.bytes());
    // What has no address has its label, and nothing else has a name.
    let names: Vec<&str> = proto.function.iter().map(|function| proto.str(function.name)).collect();
    assert_eq!(names, ["[allocated before sampling began]", "[not sampled]"]);
}

#[test]
fn names_are_not_looked_up_for_a_file_without_them() {
    let profile = Profile { names: Default::default(), ..hand_made(Kind::Live) };
    decoded(profile.pprof().without_names());
    assert!(profile.names.get().is_none());
    decoded(profile.pprof());
    assert!(profile.names.get().is_some());
}

#[test]
fn live_and_allocated_are_one_file() {
    let (live, allocated) = (hand_made(Kind::Live), hand_made(Kind::Allocated));
    let proto = decoded(live.pprof().with(&allocated));
    assert_eq!(proto.sample.len(), live.rows.len());
    assert_eq!((proto.sum(0), proto.sum(1)), (allocated.objects(), allocated.bytes()));
    assert_eq!((proto.sum(2), proto.sum(3)), (live.objects(), live.bytes()));
    assert_eq!(proto.str(proto.default_sample_type), "inuse_space");
}

#[test]
fn a_difference_has_no_negative_value() {
    let then = profile(
        Kind::Live,
        vec![service("a", 1, 10, 1000), service("b", 2, 1, 100)],
        vec![row(0, &[MAIN], 1.0, 1.0), row(1, &[GROW], 1.0, 1.0)],
    );
    // Fewer objects, and more bytes.
    let now = profile(Kind::Live, vec![service("a", 1, 5, 5000)], vec![row(0, &[MAIN], 1.0, 1.0)]);
    let growth = now.difference(&then);
    assert!(growth.rows.iter().any(|row| row.bytes < 0));
    let proto = decoded(growth.pprof());
    assert_eq!(proto.sample.iter().map(|sample| &sample.value[..]).collect::<Vec<_>>(), [[0, 0, 0, 4000]]);
    assert_eq!(proto.sample_type.len(), 4);
}

#[test]
fn services_whose_names_are_quantities_have_a_number_too() {
    let proto = decoded(hand_made(Kind::Live).pprof());
    for sample in &proto.sample {
        let numbers: Vec<i64> = sample
            .label
            .iter()
            .filter(|label| proto.str(label.key) == "service" && label.str == 0)
            .map(|label| label.num)
            .collect();
        assert_eq!(numbers, if proto.service(sample) == "7d" { vec![7] } else { vec![] });
    }
    for (name, number) in [
        ("42", Some(42)),
        ("0", Some(0)),
        ("-3", Some(-3)),
        ("+3x", Some(3)),
        ("7d", Some(7)),
        ("10mb", Some(10)),
        ("10mb:", Some(10)),
        (":10mb", Some(10)),
        ("1:5", Some(1)),
        ("1kb:5kb", Some(1)),
        (":1:5", None),
        ("1:x", None),
        ("7d2", None),
        ("7 d", None),
        ("7-d", None),
        ("d7", None),
        ("99999999999999999999", None),
        ("", None),
        (":", None),
        ("index", None),
    ] {
        assert_eq!(quantity(name), number, "{name}");
    }
}

#[test]
fn dropped_samples_are_said() {
    let profile = Profile { dropped: 3, ..hand_made(Kind::Live) };
    let proto = decoded(profile.pprof());
    assert!(proto.str(proto.comment[0]).starts_with("3 samples were dropped"));
}
