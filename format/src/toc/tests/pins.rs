//! What pins a table, and where it is found.

use super::*;

#[test]
fn only_the_pinned_table_is_taken() {
    for kind in KINDS {
        let made = finish(kind, vec![0; 10], br#"{"version":1,"entries":[]}"#.to_vec());
        let stored = &made.blob[made.stored.clone()];
        let annotate = |name: &str, digest: Digest| {
            let digest = digest.to_string();
            let pinned = PinnedToc::of_annotations(|asked| (asked == name).then_some(digest.as_str()));
            Toc::open(
                stored,
                made.location.clone(),
                &pinned.unwrap().unwrap(),
                &Limits::default(),
            )
        };
        for name in [
            "io.github.containers.zstd-chunked.manifest-checksum",
            "io.containers.zstd-chunked.manifest-checksum",
        ] {
            assert!(annotate(name, Digest::of(stored)).is_ok());
            assert!(matches!(
                annotate(name, Digest::of(&made.json)).unwrap_err(),
                FormatError::Corrupt { .. }
            ));
        }
        let json = "containerd.io/snapshot/stargz/toc.digest";
        assert!(annotate(json, Digest::of(&made.json)).is_ok());
        assert!(matches!(
            annotate(json, Digest::of(stored)).unwrap_err(),
            FormatError::Corrupt { .. }
        ));
    }
}

#[test]
fn identities_tell_kinds_and_tables_apart() {
    let identity = |kind, json: &[u8]| {
        finish(kind, vec![0; 10], json.to_vec())
            .open()
            .unwrap()
            .identity()
    };
    let (one, other) = (
        &br#"{"version":1,"entries":[]}"#[..],
        &br#"{"version":1,"entries":[ ]}"#[..],
    );
    let all = [
        identity(TocKind::Estargz, one),
        identity(TocKind::Estargz, other),
        identity(TocKind::ZstdChunked, one),
        crate::DiffId(Digest::of(one)),
    ];
    for (at, identity) in all.iter().enumerate() {
        assert!(!all[..at].contains(identity));
    }
    assert_eq!(identity(TocKind::Estargz, one), all[0]);
}

#[test]
fn annotations_are_read_in_every_dialect() {
    let digest = Digest::of(b"").to_string();
    let of = |pairs: &[(&str, &str)]| {
        let pairs = pairs.to_vec();
        PinnedToc::of_annotations(move |name| {
            pairs
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| *value)
        })
    };
    assert_eq!(of(&[]).unwrap(), None);
    assert_eq!(
        of(&[("io.containers.zstd-chunked.manifest-position", "1:2:3:1")]).unwrap(),
        None
    );
    for prefix in ["io.containers", "io.github.containers"] {
        let (checksum, position) = (
            format!("{prefix}.zstd-chunked.manifest-checksum"),
            format!("{prefix}.zstd-chunked.manifest-position"),
        );
        let pinned = of(&[(&checksum, &digest), (&position, "10:20:30:1")])
            .unwrap()
            .unwrap();
        let location = pinned.location(30).unwrap().unwrap();
        assert_eq!((location.stored, location.plain_len), (10..30, Some(30)));
        assert!(pinned.location(29).is_err());
        for bad in [
            "",
            "1:2:3",
            "1:2:3:1:5",
            "a:2:3:1",
            "-1:2:3:1",
            "1:2:3:99999999999999999999",
            "+1:2:3:1",
        ] {
            assert!(of(&[(&checksum, &digest), (&position, bad)]).is_err(), "{bad}");
        }
        for bad in ["1:0:3:1", "18446744073709551615:2:3:1", "1:2:3:2"] {
            let pinned = of(&[(&checksum, &digest), (&position, bad)]).unwrap().unwrap();
            assert!(pinned.location(100).is_err(), "{bad}");
        }
        assert!(of(&[(&checksum, "sha256:0")]).is_err());
    }
}

#[test]
fn footers_are_found_in_every_form() {
    let blob = |footer: &[u8]| [&[0; 1000], footer].concat();
    let find = |footer: &[u8]| find_toc(&blob(footer), 1000 + footer.len() as u64);
    let location = find(&estargz_footer(900)).unwrap().unwrap();
    assert_eq!((location.kind, location.stored), (TocKind::Estargz, 900..1000));
    assert!(find(&estargz_footer(1000)).is_err());
    let legacy = [
        &b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x16\0"[..],
        b"00000000000003e0STARGZ",
        b"\x01\0\0\xff\xff\0\0\0\0\0\0\0\0",
    ]
    .concat();
    assert_eq!(legacy.len(), 47);
    assert_eq!(find(&legacy).unwrap().unwrap().stored, 992..1000);
    let external = [
        &b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x15\0SG\x11\0STARGZEXTERNALTOC"[..],
        b"\x01\0\0\xff\xff\0\0\0\0\0\0\0\0",
    ]
    .concat();
    assert_eq!(external.len(), 46);
    let apart = find(&external).unwrap().unwrap();
    assert_eq!((apart.kind, apart.stored), (TocKind::EstargzApart, 1000..1046));
    let numbers = |numbers: &[u64], magic: &[u8]| {
        let mut payload: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        payload.extend(magic);
        skippable(&payload)
    };
    for footer in [
        numbers(&[100, 50, 70, 1], b"GnUlInUx"),
        numbers(&[100, 50, 70, 1, 160, 5, 6], b"GNUlInUx"),
    ] {
        assert!(footer.len() as u64 <= FOOTER_LEN_MAX);
        let location = find(&footer).unwrap().unwrap();
        assert_eq!(
            (location.kind, location.stored, location.plain_len),
            (TocKind::ZstdChunked, 100..150, Some(70))
        );
    }
    assert!(find(&numbers(&[100, u64::MAX, 70, 1], b"GnUlInUx")).is_err());
    assert!(find(&numbers(&[100, 50, 70, 9], b"GnUlInUx")).is_err());
    for other in [&b""[..], b"GnUlInU", &[0; 100]] {
        assert_eq!(find(other).unwrap(), None);
    }
    assert_eq!(find_toc(b"GnUlInUx", 8).unwrap(), None);
}
