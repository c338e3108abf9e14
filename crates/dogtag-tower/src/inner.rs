//! Access to the service that a layer has wrapped, as tower's own layers give it.

/// Implements it for a type with the type of the inner service as first parameter, and a field `inner`.
macro_rules! has_inner {
    ($outer:ident<S, $other:ident>) => {
        impl<S, $other> $outer<S, $other> {
            /// Returns the inner service.
            pub fn get_ref(&self) -> &S {
                &self.inner
            }

            /// Returns the inner service, to be changed.
            pub fn get_mut(&mut self) -> &mut S {
                &mut self.inner
            }

            /// Returns the inner service.
            pub fn into_inner(self) -> S {
                self.inner
            }
        }
    };
}
