//! The exact bytes of every kind of frame. They only ever change with the protocol version.

use super::*;
use crate::frame::layout::{ask as asks, flag};

/// Descriptions of frames, in the format of [`describe`], and their bytes. The head is on a separate line.
pub(super) const GOLDEN: &[(&str, &str)] = &[
    (
        r#"HELLO versions=1-1 capabilities=0x00000000 instance=0x1122334455667788 name="alpha" credentials=b"""#,
        "1c000000 01 00 00 00 0000000000000000
         44414649 0100 0100 00000000 8877665544332211 05 616c706861 0000",
    ),
    (
        r#"HELLO versions=1-3 capabilities=0x00000005 instance=0x0000000000000001 name="größe" credentials=b"key\x00""#,
        "22000000 01 00 00 00 0000000000000000
         44414649 0100 0300 05000000 0100000000000000 07 6772c3b6c39f65 0400 6b657900",
    ),
    (
        "WELCOME version=1 capabilities=0x00000000 node=7 heartbeat_ms=5000 payload_bytes_max=67108864",
        "16000000 02 00 00 00 0000000000000000
         0100 00000000 07000000 88130000 0000000400000000",
    ),
    (
        r#"REFUSE code=2 reason="taken""#,
        "06000000 03 00 00 00 0000000000000000
         02 74616b656e",
    ),
    (
        r#"REGISTER id=1 offers=[{index=0 fingerprint=0x0000000000000000 ready=true name="add" signature="(a: i64, b: i64) -> i64"}]"#,
        "2a000000 04 00 00 00 0100000000000000
         00000000 0000000000000000 01 03 616464 1700 28613a206936342c20623a2069363429202d3e20693634",
    ),
    (
        r#"REGISTER id=2 more offers=[{index=1 fingerprint=0xf7da3f3a0d4b2dfe ready=false name="a" signature=""}, {index=2 fingerprint=0x0000000000000000 ready=true name="b" signature="()"}]"#,
        "24000000 04 01 00 00 0200000000000000
         01000000 fe2d4b0d3a3fdaf7 00 01 61 0000
         02000000 0000000000000000 01 01 62 0200 2829",
    ),
    ("REGISTER id=3 offers=[]", "00000000 04 00 00 00 0300000000000000"),
    ("REGISTERED id=1", "00000000 05 00 00 00 0100000000000000"),
    (
        r#"REQUEST id=7 codec=1 hops=1 deadline_us=250000 fingerprint=0x0000000000000000 callback=unrouted total=5 name="add" node="" body=b"[2,3]""#,
        "24000000 06 00 01 01 0700000000000000
         90d0030000000000 0000000000000000 ffffffff 05000000 03 00 0000 616464 5b322c335d",
    ),
    (
        r#"REQUEST id=4294967297 one_way codec=0 hops=2 deadline_us=0 fingerprint=0xf7da3f3a0d4b2dfe callback=3 total=1 name="f" node="beta" body=b"*""#,
        "22000000 06 02 00 02 0100000001000000
         0000000000000000 fe2d4b0d3a3fdaf7 03000000 01000000 01 00 0400 66 62657461 2a",
    ),
    (
        r#"REQUEST id=8 broadcast more codec=1 hops=1 deadline_us=0 fingerprint=0x0000000000000000 callback=unrouted total=70000 name="f" node="a\nb" body=b"[0""#,
        "22000000 06 05 01 01 0800000000000000
         0000000000000000 0000000000000000 ffffffff 70110100 01 00 0300 66 610a62 5b30",
    ),
    (
        r#"REPLY id=7 codec=1 part=0 total=1 body=b"5""#,
        "09000000 07 00 01 00 0700000000000000
         00000000 01000000 35",
    ),
    (
        r#"REPLY id=8 more codec=0 part=2 total=65537 body=b"\x00\x01""#,
        "0a000000 07 01 00 00 0800000000000000
         02000000 01000100 0001",
    ),
    (
        r#"FAILURE id=7 part=0 fault=1 number=0 limit=0 node="" message="nobody" type_name="" location="" details=["add", "sub"] payload=b"""#,
        "30000000 08 00 00 00 0700000000000000
         00000000 01 0000000000000000 0000000000000000
         0000 0600 6e6f626f6479 0000 0000 02 0300 616464 0300 737562 0000",
    ),
    (
        r#"FAILURE id=9 part=1 fault=16 number=1 limit=2 node="n" message="m" type_name="T" location="l" details=[] payload=b"\xff""#,
        "25000000 08 00 00 00 0900000000000000
         01000000 10 0100000000000000 0200000000000000
         0100 6e 0100 6d 0100 54 0100 6c 00 0100 ff",
    ),
    (
        r#"TARGETS id=8 nodes="a\nb""#,
        "03000000 09 00 00 00 0800000000000000
         610a62",
    ),
    ("CANCEL id=7", "00000000 0a 00 00 00 0700000000000000"),
    (
        r#"CHUNK id=8 more part=0 body=b",1""#,
        "06000000 0b 01 00 00 0800000000000000
         00000000 2c31",
    ),
    (
        r#"CHUNK id=8 reply part=2 body=b"\x02""#,
        "05000000 0b 08 00 00 0800000000000000
         02000000 02",
    ),
    (
        "CREDIT id=8 part=0 bytes=65536",
        "08000000 0c 00 00 00 0800000000000000
         00000000 00000100",
    ),
    (
        "CREDIT id=8 reply part=2 bytes=65536",
        "08000000 0c 08 00 00 0800000000000000
         02000000 00000100",
    ),
    (
        r#"ASK id=3 codec=1 wait_process "beta""#,
        "06000000 0d 00 01 00 0300000000000000
         01 04 62657461",
    ),
    (
        r#"ASK id=4 codec=0 wait_function "add""#,
        "05000000 0d 00 00 00 0400000000000000
         02 03 616464",
    ),
    (
        "ASK id=5 codec=1 processes",
        "01000000 0d 00 01 00 0500000000000000
         03",
    ),
    (
        "ASK id=6 codec=1 callbacks",
        "01000000 0d 00 01 00 0600000000000000
         04",
    ),
    (
        r#"ASK id=7 codec=1 period_us=1000000 fingerprint=0x0000000000000000 name="add" node="" body=b"[2,3]""#,
        "1b000000 0d 00 01 00 0700000000000000
         05 40420f0000000000 0000000000000000 03 616464 00 5b322c335d",
    ),
    (
        r#"ASK id=8 codec=0 at=[1700000000000000, 1700000001000000] fingerprint=0x0000000000000001 name="f" node="beta" body=b"""#,
        "22000000 0d 00 00 00 0800000000000000
         06 1000 00401e18240a0600 40822d18240a0600 0100000000000000 01 66 04 62657461",
    ),
    (
        "ASK id=9 codec=1 cancel_task=77",
        "09000000 0d 00 01 00 0900000000000000
         07 4d00000000000000",
    ),
    (
        "ASK id=10 codec=1 task_status=77",
        "09000000 0d 00 01 00 0a00000000000000
         08 4d00000000000000",
    ),
    ("PING id=1", "00000000 0e 00 00 00 0100000000000000"),
    ("PONG id=1", "00000000 0f 00 00 00 0100000000000000"),
    (
        r#"GOODBYE reason="stopping""#,
        "08000000 10 00 00 00 0000000000000000
         73746f7070696e67",
    ),
];

/// Describes a frame completely in one line, as `docs/PROTOCOL.md` does above its bytes.
pub(super) fn describe(frame: &Frame<'_>) -> String {
    let kind = frame.kind();
    let flag = |set: bool, name: &'static str| if set { name } else { "" };
    match frame {
        Frame::Hello(Hello { version_min, version_max, capabilities, instance, name, credentials }) => {
            format!(
                "{kind} versions={version_min}-{version_max} capabilities={capabilities:#010x} \
             instance={instance:#018x} name={name:?} credentials={}",
                literal(credentials)
            )
        }
        Frame::Welcome(Welcome { version, capabilities, node, heartbeat_ms, payload_bytes_max }) => format!(
            "{kind} version={version} capabilities={capabilities:#010x} node={node} \
             heartbeat_ms={heartbeat_ms} payload_bytes_max={payload_bytes_max}"
        ),
        Frame::Refuse(Refuse { code, reason }) => {
            format!("{kind} code={} reason={reason:?}", code.to_byte())
        }
        Frame::Register(Register { id, more, offers }) => {
            let offers: Vec<_> = offers
                .iter()
                .map(|Offer { index, fingerprint, ready, name, signature }| {
                    format!(
                        "{{index={index} fingerprint={fingerprint:#018x} ready={ready} name={name:?} \
                         signature={signature:?}}}"
                    )
                })
                .collect();
            format!("{kind} id={id}{} offers=[{}]", flag(*more, " more"), offers.join(", "))
        }
        Frame::Request(Request {
            id,
            one_way,
            broadcast,
            more,
            codec,
            hops,
            deadline_us,
            fingerprint,
            callback,
            total,
            name,
            node,
            body,
        }) => {
            let flags = [flag(*one_way, " one_way"), flag(*broadcast, " broadcast"), flag(*more, " more")];
            let callback = if *callback == UNROUTED { "unrouted".to_owned() } else { callback.to_string() };
            format!(
                "{kind} id={id}{} codec={codec} hops={hops} deadline_us={deadline_us} \
                 fingerprint={fingerprint:#018x} callback={callback} total={total} name={name:?} node={node:?} \
                 body={}",
                flags.concat(),
                literal(&body.to_bytes())
            )
        }
        Frame::Reply(Reply { id, more, part, codec, total, body }) => format!(
            "{kind} id={id}{} codec={codec} part={part} total={total} body={}",
            flag(*more, " more"),
            literal(&body.to_bytes())
        ),
        Frame::Failure(Failure { id, part, fault }) => {
            let Fault { kind: fault, number, limit, node, message, type_name, location, details, payload } =
                &**fault;
            format!(
                "{kind} id={id} part={part} fault={} number={number} limit={limit} node={node:?} \
                 message={message:?} type_name={type_name:?} location={location:?} details={details:?} \
                 payload={}",
                fault.to_byte(),
                literal(payload)
            )
        }
        Frame::Targets(Targets { id, nodes }) => format!("{kind} id={id} nodes={nodes:?}"),
        Frame::Chunk(Chunk { id, reply, more, part, body }) => format!(
            "{kind} id={id}{}{} part={part} body={}",
            flag(*reply, " reply"),
            flag(*more, " more"),
            literal(&body.to_bytes())
        ),
        Frame::Credit { id, reply, part, bytes } => {
            format!("{kind} id={id}{} part={part} bytes={bytes}", flag(*reply, " reply"))
        }
        Frame::Ask { id, codec, question } => format!("{kind} id={id} codec={codec} {}", ask(question)),
        Frame::Registered { id } | Frame::Cancel { id } | Frame::Ping { id } | Frame::Pong { id } => {
            format!("{kind} id={id}")
        }
        Frame::Goodbye { reason } => format!("{kind} reason={reason:?}"),
    }
}

fn ask(question: &Question<'_>) -> String {
    match question {
        Question::WaitProcess { name } => format!("wait_process {name:?}"),
        Question::WaitFunction { name } => format!("wait_function {name:?}"),
        Question::Processes => "processes".to_owned(),
        Question::Callbacks => "callbacks".to_owned(),
        Question::CancelTask { task } => format!("cancel_task={task}"),
        Question::TaskStatus { task } => format!("task_status={task}"),
        Question::Schedule(Schedule { timing, codec: _, fingerprint, name, node, body }) => {
            let timing = match timing {
                Timing::Period(period) => format!("period_us={period}"),
                Timing::At(times) => format!("at={:?}", times.iter().collect::<Vec<_>>()),
            };
            format!(
                "{timing} fingerprint={fingerprint:#018x} name={name:?} node={node:?} body={}",
                literal(&body.to_bytes())
            )
        }
    }
}

fn literal(bytes: &[u8]) -> String {
    format!("b\"{}\"", bytes.escape_ascii())
}

#[test]
fn golden_bytes_mean_what_they_say_and_come_out_again() {
    for (description, hex) in GOLDEN {
        let bytes = unhex(hex);
        let frame = whole(&bytes).unwrap_or_else(|error| panic!("{error}: {description}"));
        assert_eq!(describe(&frame), *description);
        assert_eq!(frame.to_bytes(), bytes, "{description}");
    }
}

#[test]
fn every_kind_is_here() {
    let mut kinds: Vec<_> = samples().iter().map(|bytes| bytes[4]).collect();
    kinds.dedup();
    assert_eq!(kinds, (1..=16).collect::<Vec<_>>());
}

/// Every question, and every flag both set and not set.
#[test]
fn every_question_and_flag_is_here() {
    let samples = samples();
    let asked = |question| samples.iter().any(|bytes| bytes[4] == kind::ASK && bytes[HEAD_BYTES] == question);
    assert!((asks::WAIT_PROCESS..=asks::TASK_STATUS).all(asked));
    for (kind, flags) in [
        (kind::REGISTER, &[flag::MORE][..]),
        (kind::REQUEST, &[flag::MORE, flag::ONE_WAY, flag::BROADCAST]),
        (kind::REPLY, &[flag::MORE]),
        (kind::CHUNK, &[flag::MORE, flag::REPLY]),
        (kind::CREDIT, &[flag::REPLY]),
    ] {
        for flag in flags {
            let has = |set| samples.iter().any(|bytes| bytes[4] == kind && (bytes[5] & flag != 0) == set);
            assert!(has(true) && has(false), "kind {kind}, flag {flag}");
        }
    }
}

/// A body is a slice of the buffer that the frame came in, not a copy.
#[test]
fn bodies_stay_where_they_are() {
    for bytes in samples() {
        let (Frame::Request(Request { body, .. }) | Frame::Reply(Reply { body, .. })) =
            whole(&bytes).unwrap()
        else {
            continue;
        };
        assert!(body.is_empty() || bytes.as_ptr_range().contains(&body.to_bytes().as_ptr()));
    }
}

/// What a newer version appends to the handshake does not keep it from being understood.
#[test]
fn the_handshake_may_grow() {
    for (description, hex) in &GOLDEN[..3] {
        let mut bytes = unhex(hex).to_vec();
        bytes.extend_from_slice(b"new");
        bytes[0] += 3;
        assert_eq!(describe(&whole(&bytes.into()).unwrap()), *description);
    }
}

/// Bits and bytes without a meaning are ignored, so that they can get one later.
#[test]
fn undefined_flags_and_reserved_bytes_are_passed_over() {
    let mut bytes = unhex("00000000 0e 00 00 00 0100000000000000").to_vec();
    bytes[5..8].fill(0xf0);
    assert_eq!(whole(&bytes.into()), Ok(Frame::Ping { id: 1 }));
}

/// Texts for people are cut to their limit, at a character boundary.
#[test]
fn long_texts_of_a_fault_are_cut() {
    let mut fault = Fault::new(FaultKind::Failed, "ö".repeat(FAULT_TEXT_BYTES_MAX));
    fault.details = vec!["x".repeat(FAULT_TEXT_BYTES_MAX + 1); FAULT_DETAILS_MAX + 1];
    fault.payload = vec![0; FAULT_PAYLOAD_BYTES_MAX + 1].into();
    let bytes = Frame::Failure(Failure { id: 1, part: 0, fault: Box::new(fault) }).to_bytes();
    let Frame::Failure(failure) = whole(&bytes).unwrap() else { panic!("a failure is a failure") };
    assert_eq!(failure.fault.message, "ö".repeat(FAULT_TEXT_BYTES_MAX / 2));
    assert_eq!(failure.fault.details.len(), FAULT_DETAILS_MAX);
    assert!(failure.fault.details.iter().all(|text| text.len() == FAULT_TEXT_BYTES_MAX));
    assert!(failure.fault.payload.is_empty());
}
