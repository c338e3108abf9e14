//! Memory is refused, by the backend and by the system: what cannot be had is null or an error,
//! the program goes on, and the books are right.
//!
//! `DOGTAG_SEED` chooses the random programs; each run prints its own.
#![cfg(target_os = "linux")]

mod backend;
#[path = "../child/mod.rs"]
mod child;
mod dropping;
mod events;
#[cfg(feature = "pool")]
mod pools;
mod programs;
#[path = "../random/mod.rs"]
mod random;
mod system;
mod tight;

use dogtag::Dogtag;

#[global_allocator]
static ALLOC: Dogtag<backend::Faulty<'static>> = Dogtag::with_backend(backend::Faulty::UNBOOKED);

/// Tasks for processes of their own.
macro_rules! in_processes {
    ($($(#[$attribute:meta])* $room:ident::$task:ident,)*) => {
        $(
            $(#[$attribute])*
            #[test]
            fn $task() {
                let output = child::run(stringify!($task), "");
                let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
                assert!(output.status.success(), "{}\n{}{}", output.status, text[0], text[1]);
                print!("{}", text[0]);
            }
        )*

        #[test]
        fn a_child() {
            match child::task().as_deref() {
                $($(#[$attribute])* Some(stringify!($task)) => $room::$task(),)*
                Some(other) => panic!("{other:?} is no task"),
                None => {}
            }
        }
    };
}

in_processes! {
    dropping::the_announcer_is_begun_when_there_is_memory,
    dropping::without_callbacks_there_is_nothing_to_forget,
    system::a_thread_without_cells_is_counted_all_the_same,
    system::a_service_without_cells_is_counted_all_the_same,
    system::a_service_without_a_record_is_an_error,
    #[cfg(not(feature = "memory-check"))]
    system::a_large_block_without_an_owner_is_nobodys,
    #[cfg(feature = "memory-check")]
    system::a_block_without_a_state_is_null,
    tight::an_address_space_that_is_used_up_ends_nothing,
    tight::strict_overcommit_ends_nothing,
}
