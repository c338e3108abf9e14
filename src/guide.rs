// The guide, for whoever reads the documentation: its text is `guide.md`, and its programs
// are tests. Here stand the links to what features add, for builds with and without them.
#![doc = include_str!("guide.md")]
#![doc = ""]
#![cfg_attr(feature = "memory-check", doc = "[`check`]: crate::check")]
#![cfg_attr(not(feature = "memory-check"), doc = "[`check`]: crate#features")]
#![doc = "[`Pool`]: https://docs.rs/dogtag-pool"]
#![doc = "[`Fallback`]: https://docs.rs/dogtag-mapped"]
#![doc = "[`MappedRegion`]: https://docs.rs/dogtag-mapped"]
#![cfg_attr(feature = "tracing-layer", doc = "[`ServiceLayer`]: crate::ServiceLayer")]
#![cfg_attr(not(feature = "tracing-layer"), doc = "[`ServiceLayer`]: crate#features")]
