//! What every [daffi](https://docs.rs/daffi) controller must do, as tests that a controller crate runs on
//! itself.
//!
//! Each case starts the controller through the interface in [`daffi_core::controller`] on a free port of
//! 127.0.0.1 and on a UNIX socket, connects nodes that speak the wire protocol by hand, and checks what comes
//! back. The cases know nothing else about a controller, so it may be written in any way.
//!
//! In a file under `tests/` in a controller crate, with this crate as a dev-dependency:
//!
//! ```ignore
//! // One #[test] for each case.
//! daffi_conformance::conformance!(my_controller::MyController);
//! ```
//!
//! For other uses the cases are available in [`CASES`], and their building blocks, [`Bench`] and [`Node`],
//! can be used in tests of your own.

// For a test it does not matter how large a fault is.
#![allow(clippy::result_large_err)]

use daffi_core::controller::Controller;

mod bench;
pub use bench::Bench;

mod call;
pub use call::{Call, Offered, Served, offer};

mod cases;

mod node;
pub use node::{Node, Outcome};

mod wire;
pub use wire::{PATIENCE, Wire};

/// One requirement for a controller.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Case {
    /// Its name, which is that of a function.
    pub name: &'static str,
    /// What it is about, as a sentence.
    pub about: &'static str,
    /// Runs it, and panics if the controller does not pass.
    pub run: fn(&dyn Controller),
}

/// Runs the case called `name`.
///
/// # Panics
/// The controller does not pass it, or there is no such case.
pub fn run(name: &str, controller: &dyn Controller) {
    let case = CASES.iter().find(|case| case.name == name).expect("a case of this name");
    (case.run)(controller);
}

/// The list of cases, and the macro that makes a test of each. `$dollar` is a dollar sign: a macro inside a
/// macro cannot write one otherwise.
macro_rules! cases {
    ($dollar:tt $($group:ident { $($case:ident: $about:literal,)* })*) => {
        /// All cases, in the order in which a new controller is best made to pass them.
        pub const CASES: &[Case] = &[
            $($(Case { name: stringify!($case), about: $about, run: cases::$group::$case },)*)*
        ];

        /// Makes a `#[test]` of each case, for the controller given by an expression.
        #[macro_export]
        macro_rules! conformance {
            ($dollar controller:expr) => {
                $($(
                    #[doc = $about]
                    #[test]
                    fn $case() {
                        $dollar crate::run(stringify!($case), &$dollar controller);
                    }
                )*)*
            };
        }
    };
}

cases! { $
    handshake {
        a_hello_is_welcomed: "WELCOME says version, heartbeat and payload limit",
        a_version_within_the_range_is_chosen: "a node that speaks newer versions too is let in with version 1",
        a_version_out_of_range_is_refused: "a node with no version in common gets REFUSE 1",
        a_name_that_is_none_is_refused: "an invalid process name gets REFUSE 3",
        a_hello_may_come_byte_by_byte_and_longer_than_known: "what a later version appends to HELLO is passed over",
        a_taken_name_is_refused: "the older node answers a PING, so the newcomer gets REFUSE 2",
        a_silent_node_loses_its_name: "the older node does not answer within a second, so the newcomer takes over",
        the_same_instance_replaces_itself: "a process that connects anew does not wait for its old connection",
    }
    registration {
        offers_are_visible_once_all_have_come: "a REGISTER with MORE shows nothing yet",
        a_node_is_visible_once_it_has_registered: "a WELCOME alone shows it to nobody",
        a_later_registration_adds: "earlier offers stay",
        a_method_waits_for_its_instance: "an offer that is not ready is NoInstance, until it is registered as ready",
        a_ready_candidate_is_preferred: "an offer that is not ready gets no calls while another one is",
        a_node_that_leaves_takes_its_callbacks_along: "its callbacks are NoCandidate, itself NoProcess",
        a_callback_needs_a_name: "an invalid callback name closes the connection",
    }
    routing {
        a_call_goes_there_and_back: "arguments and result arrive as they are",
        what_the_caller_says_is_passed_on: "codec, hops, deadline, fingerprint, caller, and the callee's index",
        one_candidate_gets_a_call: "of several candidates exactly one gets it, and one answer comes back",
        a_caller_is_not_its_own_callee: "a node's call goes to others, or to nobody",
        a_pinned_call_goes_to_its_node: "a call for a node goes there, whoever else offers the callback",
        a_pinned_call_fails_where_nobody_can_take_it: "an unknown node is NoProcess, one without the callback NoCandidate",
        a_name_that_nobody_offers_has_a_hint: "NoCandidate names what looks alike",
        signatures_are_compared: "what does not match is refused, with the callee's signature, before it is passed on",
        requests_keep_their_order: "requests of one node to another arrive as they were sent",
        answers_find_their_calls_in_any_order: "callers may use the same ids, and callees answer in any order",
        a_one_way_call_is_not_answered: "neither by the callee nor by a failure",
        calls_nest_up_to_the_limit: "32 hops are passed on, 33 are HopLimit",
        round_robin_takes_turns: "one candidate after the other",
        least_busy_spares_those_at_work: "a candidate with calls in flight gets none while another has none",
        random_leaves_nobody_out: "every candidate gets calls",
    }
    failure {
        a_failure_arrives_whole: "every field of a callee's fault reaches the caller",
        a_lost_callee_fails_its_calls_at_once: "each call in flight is RemoteStopped, once",
        a_lost_caller_cancels_its_calls: "the callees of a lost caller get CANCEL",
        a_cancel_reaches_the_callee: "CANCEL is passed on, and what comes after it is dropped",
        a_second_answer_is_dropped: "one outcome, however often the callee answers",
        only_the_callee_can_answer: "another node's answer with the right id is not delivered",
        only_the_caller_can_cancel: "another node's CANCEL with the right id does nothing",
        frames_for_unknown_ids_are_passed_over: "late answers, chunks, credit and cancels are no violation",
        silence_is_death: "a node that answers no ping for three heartbeats is lost",
        only_what_was_asked_is_answered: "a PONG for a PING that was never sent is no sign of life",
        only_a_pong_is_a_sign_of_life: "a node that talks and answers no ping is lost too",
        who_answers_pings_stays: "a node that only answers pings is not lost",
        a_ping_is_answered: "with its id",
        a_goodbye_lets_running_calls_finish: "a leaving node gets no new calls, and its answers still count",
    }
    broadcast {
        a_broadcast_reaches_all_others: "TARGETS, then one outcome for each, and none for the caller itself",
        a_failing_target_fails_alone: "one failure is one part's outcome",
        a_dying_target_fails_alone: "a lost target is RemoteStopped in its part",
        a_broadcast_to_some_names_them_all: "unknown nodes among the named are NoProcess in their part",
        a_one_way_broadcast_is_acknowledged: "TARGETS, and nothing else",
        a_broadcast_to_nobody_fails: "NoCandidate, with and without ONE_WAY",
        a_cancelled_broadcast_is_cancelled_everywhere: "every target gets CANCEL",
        large_arguments_reach_every_target: "chunks of a broadcast are passed on to all",
        the_slowest_target_sets_the_pace: "the caller gets as much credit as every target has given",
        large_results_keep_their_parts: "chunks and credit of several targets do not mix",
    }
    payload {
        large_payloads_go_both_ways: "payloads in chunks arrive whole",
        credit_goes_back_to_the_sender: "payloads beyond the window, paced by their receiver",
        a_small_call_overtakes_a_large_one: "a call is answered while a large one is still on its way",
        payloads_do_not_mix: "chunks of two callers alternate, and each payload arrives whole",
        arguments_of_another_size_than_announced_close_the_connection: "only that of the liar; its call is cancelled",
        a_result_of_another_size_than_announced_closes_the_connection: "only that of the liar; its caller gets RemoteStopped",
        a_caller_that_dies_in_mid_payload_cancels: "a callee does not wait for the rest for ever",
        a_large_one_way_call_ends_with_its_last_chunk: "and if its callee is lost, nobody is told",
        a_large_one_way_call_that_nobody_takes_gets_its_credit_back: "for its first part, and for what came until it was refused",
        an_early_answer_ends_a_large_call: "chunks that crossed the answer are dropped",
    }
    questions {
        processes_are_listed: "with their callbacks",
        callbacks_are_listed: "with signature, nodes, and whether they are ready",
        answers_come_in_the_codec_of_the_question: "bincode or JSON",
        a_long_list_comes_in_chunks: "an answer of more than one frame",
        a_process_is_waited_for: "answered at once if it is there, else when it comes",
        a_callback_is_waited_for: "another node has to offer it, ready to be called",
        a_question_can_be_taken_back: "nothing is answered after CANCEL",
    }
    schedule {
        a_period_calls_at_a_fixed_rate: "the first time after one period",
        points_in_time_are_kept: "soonest first, and then the task is finished",
        a_tick_is_skipped_while_the_call_before_runs: "and counted",
        a_task_outlives_its_owner: "the owner's name stays the caller's",
        a_task_outlives_its_callee: "another candidate is called when there is one",
        nothing_is_called_after_a_cancel_is_acknowledged: "and the status says so",
        failures_are_counted: "with the words of the last one",
        a_task_may_be_pinned: "to a node",
        times_that_cannot_come_are_refused: "no period, no times, past times, too many: InvalidTime",
        an_unknown_task_is_told: "NoTask, with its id",
        a_task_does_not_call_its_owner: "as no call does",
    }
    limits {
        a_payload_over_the_limit_is_refused: "arguments and result: TooLarge, with size and limit",
        a_full_queue_refuses_and_nobody_else_notices: "Overloaded for a callee that does not read; others go on",
        a_node_offers_only_so_many_callbacks: "one more closes the connection",
        a_handshake_takes_only_so_long: "silence and half a HELLO are closed",
        only_so_many_connect: "one more is closed, and those that are in go on",
    }
    hostile {
        a_length_over_the_limit_closes_at_once: "from the head alone, before and after the handshake",
        other_protocols_are_closed: "HTTP, TLS, SSH",
        random_bytes_are_closed: "before and after the handshake",
        nothing_comes_before_the_hello: "any other frame closes",
        a_hello_without_the_magic_is_closed: "it is of another protocol",
        frames_of_a_controller_close_a_node: "WELCOME, REFUSE, REGISTERED and TARGETS are not for nodes to say",
        a_second_hello_closes: "there is one",
        malformed_frames_close: "unknown kinds, early ends, unknown questions, no UTF-8, lying sizes",
        half_a_frame_and_the_end_do_no_harm: "a connection that ends in mid frame",
        an_id_in_flight_is_not_used_again: "neither for a call nor for a question",
        a_node_offers_a_name_once: "the same name under another index closes",
        a_result_comes_in_order_and_once: "chunks before a REPLY and a second REPLY close",
        forged_answers_do_no_harm: "answers to guessed ids reach nobody",
    }
    stop {
        calls_in_flight_finish_within_the_grace: "nodes get GOODBYE, calls their answers, then connections close",
        an_idle_controller_stops_at_once: "without waiting for the grace; a second stop returns",
        the_grace_has_an_end: "a call that does not end does not keep the controller",
        a_stopped_controller_leaves_its_addresses: "another one can listen there",
        an_address_in_use_is_told: "AddressInUse, and nothing left behind",
    }
    memory {
        a_node_in_memory_is_like_any_other: "calls in both directions",
        large_payloads_cross_memory_too: "in chunks",
        a_node_in_memory_can_leave: "its calls in flight are RemoteStopped",
        a_node_in_memory_hears_of_lost_callees: "and of the end of the controller",
    }
}
