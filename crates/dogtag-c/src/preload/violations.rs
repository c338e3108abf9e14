//! A file that gets the violations of a program that knows nothing of the library: a line of JSON for
//! each, and one for each process, so that a reader knows who was checked.

dogtag::__memory_check! {
    on {
        mod checked;
        pub(super) use checked::begin;
    }
    off {
        /// Nothing is checked.
        pub(super) fn begin() {}
    }
}
