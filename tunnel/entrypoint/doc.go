// Package entrypoint is the front that all clusters of a seed share: one load
// balancer, three ports, three ways to find the right backend.
package entrypoint
