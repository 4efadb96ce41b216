"""Which tests prove the forward pass of each registered model. docs/models.md prints them; test_every_model.py checks them.

A new model has its line in BY_HAND, and in LIMITS where there is a setting in which it becomes another.
"""

from __future__ import annotations

BY_HAND: dict[str, tuple[str, ...]] = {
    "afm": (
        "test_rows_fields::test_whole_model_from_the_raw_rows",
        "test_interactions::test_afm_is_a_loop_with_one_softmax_over_all_pairs",
        "test_compositions::test_logits_of_several_interactions_add",
    ),
    "aitm": ("test_rows_tasks::test_whole_model_from_the_raw_rows", "test_routing::test_aitm_by_hand"),
    "aman": (
        "test_rows_tasks::test_whole_model_from_the_raw_rows",
        "test_whole_models::test_two_networks_that_share_nothing_and_their_heads",
    ),
    "autofis_deepfm": (
        "test_rows_fields::test_whole_model_from_the_raw_rows",
        "test_whole_models::test_logits_add_over_one_representation",
    ),
    "autofis_fm": (
        "test_rows_fields::test_whole_model_from_the_raw_rows",
        "test_autofis::test_every_product_has_its_weight",
        "test_whole_models::test_logits_add_over_one_representation",
    ),
    "autofis_ipnn": (
        "test_rows_fields::test_whole_model_from_the_raw_rows",
        "test_autofis::test_kept_products_are_further_inputs_of_the_tower",
    ),
    "autoint": (
        "test_rows_fields::test_whole_model_from_the_raw_rows",
        "test_interactions_fields::test_autoint_is_a_loop_over_layers_heads_and_fields",
    ),
    "autoint_plus": (
        "test_rows_fields::test_whole_model_from_the_raw_rows",
        "test_interactions_fields::test_autoint_is_a_loop_over_layers_heads_and_fields",
        "test_interactions_fields::test_autoint_plus_is_autoint_beside_a_tower",
        "test_compositions::test_logits_of_several_interactions_add",
    ),
    "base": (
        "test_rows_sequences::test_whole_model_from_the_raw_rows",
        "test_models_by_hand::test_base_pools_each_attribute_and_feeds_one_tower",
    ),
    "bert4rec": (
        "test_rows_sequences::test_whole_model_from_the_raw_rows",
        "test_catalogue::test_bert4rec_scores_candidates_by_the_mask_behind_the_past",
    ),
    "bst": (
        "test_rows_sequences::test_whole_model_from_the_raw_rows",
        "test_bst::test_one_block_equals_a_loop_and_gives_its_weights",
        "test_bst::test_three_blocks_equal_a_loop",
    ),
    "cgc": ("test_rows_tasks::test_whole_model_from_the_raw_rows", "test_multitask::test_ple_by_hand"),
    "cross_stitch": (
        "test_rows_tasks::test_whole_model_from_the_raw_rows",
        "test_multitask::test_cross_stitch_by_hand_and_as_it_begins",
    ),
    "cvr_base": (
        "test_rows_tasks::test_whole_model_from_the_raw_rows",
        "test_whole_models::test_two_networks_that_share_nothing_and_their_heads",
    ),
    "dcn": (
        "test_rows_fields::test_whole_model_from_the_raw_rows",
        "test_models_by_hand::test_dcn_is_the_explicit_formula_beside_a_tower",
    ),
    "dcn_mix": (
        "test_rows_fields::test_whole_model_from_the_raw_rows",
        "test_interactions_networks::test_cross_v2_with_experts_by_hand",
    ),
    "dcn_v2": (
        "test_rows_fields::test_whole_model_from_the_raw_rows",
        "test_interactions_networks::test_cross_v2_with_matrices_by_hand",
    ),
    "deep_crossing": (
        "test_rows_fields::test_whole_model_from_the_raw_rows",
        "test_interactions_networks::test_deep_crossing_is_residual_units_over_the_stack",
    ),
    "deepfm": (
        "test_rows_fields::test_whole_model_from_the_raw_rows",
        "test_wide_deep::test_deepfm_adds_three_logits_over_one_table",
    ),
    "deepmcp": (
        "test_rows_sequences::test_whole_model_from_the_raw_rows",
        "test_whole_models::test_logits_add_over_one_representation",
    ),
    "dfm": ("test_whole_models::test_dfm_is_two_sums_of_weights",),
    "dien": (
        "test_rows_sequences::test_whole_model_from_the_raw_rows",
        "test_models_by_hand::test_dien_equals_a_loop_and_gives_its_weights",
    ),
    "din": (
        "test_rows_sequences::test_whole_model_from_the_raw_rows",
        "test_models_by_hand::test_din_equals_a_loop_and_gives_its_weights",
        "test_din::test_every_variant_is_its_loop",
    ),
    "division": (
        "test_rows_tasks::test_whole_model_from_the_raw_rows",
        "test_whole_models::test_two_networks_that_share_nothing_and_their_heads",
    ),
    "dsin": (
        "test_rows_sequences::test_whole_model_from_the_raw_rows",
        "test_dsin::test_dsin_equals_a_loop_and_gives_the_weights_of_sessions",
    ),
    "dssm": (
        "test_rows_sequences::test_whole_model_from_the_raw_rows",
        "test_interactions_networks::test_dssm_meets_once_at_the_end",
    ),
    "esmm": (
        "test_rows_tasks::test_whole_model_from_the_raw_rows",
        "test_models_by_hand::test_esmm_two_towers_one_product_and_two_losses",
        "test_entire_space::test_a_chain_of_four_stages_by_brute_force",
    ),
    "esmm_din": (
        "test_rows_tasks::test_whole_model_from_the_raw_rows",
        "test_models_by_hand::test_esmm_two_towers_one_product_and_two_losses",
    ),
    "esmm_ns": (
        "test_rows_tasks::test_whole_model_from_the_raw_rows",
        "test_whole_models::test_two_networks_that_share_nothing_and_their_heads",
    ),
    "ffm": (
        "test_rows_fields::test_whole_model_from_the_raw_rows",
        "test_interactions::test_ffm_is_a_loop_over_pairs_with_a_vector_for_each_other_field",
        "test_compositions::test_logits_of_several_interactions_add",
    ),
    "fgcnn": (
        "test_rows_fields::test_whole_model_from_the_raw_rows",
        "test_interactions_fields::test_fgcnn_is_a_loop_over_places_and_a_product_network",
    ),
    "fibinet": (
        "test_rows_fields::test_whole_model_from_the_raw_rows",
        "test_interactions_fields::test_fibinet_is_the_equations_of_the_paper",
        "test_compositions::test_logits_of_several_interactions_add",
    ),
    "fm": (
        "test_rows_fields::test_whole_model_from_the_raw_rows",
        "test_models_by_hand::test_fm_is_brute_force_over_all_pairs_of_fields_and_numbers",
    ),
    "fnn": ("test_rows_fields::test_whole_model_from_the_raw_rows", "test_fnn::test_fnn_is_its_equations_in_loops"),
    "fpenn": (
        "test_rows_fields::test_whole_model_from_the_raw_rows",
        "test_fpenn::test_mean_and_bound_are_their_equations_in_loops",
        "test_compositions::test_logits_of_several_interactions_add",
    ),
    "fwfm": (
        "test_rows_fields::test_whole_model_from_the_raw_rows",
        "test_interactions::test_fwfm_is_a_loop_over_pairs_with_each_of_the_three_linear_parts",
    ),
    "gbdt_lr": (
        "test_gbdt_lr::test_leaves_are_lightgbms_own_in_float32_and_float64",
        "test_gbdt_lr::test_exactly_one_leaf_of_each_tree_and_leaf_values_reproduce_the_boosters_margin",
    ),
    "hstu": (
        "test_rows_sequences::test_whole_model_from_the_raw_rows",
        "test_hstu::test_hstu_equals_a_loop_over_the_whole_sequence",
    ),
    "ipnn": (
        "test_rows_fields::test_whole_model_from_the_raw_rows",
        "test_interactions_networks::test_pnn_is_the_equations_of_the_paper",
    ),
    "l2_constrained": (
        "test_rows_tasks::test_whole_model_from_the_raw_rows",
        "test_multitask::test_l2_constrained_by_hand_and_its_penalty",
    ),
    "lr": (
        "test_rows_fields::test_whole_model_from_the_raw_rows",
        "test_models_by_hand::test_lr_is_the_sum_of_its_weights",
    ),
    "ml_mmoe": ("test_rows_tasks::test_whole_model_from_the_raw_rows", "test_multitask::test_stacked_mixtures_by_hand"),
    "mmoe": ("test_rows_tasks::test_whole_model_from_the_raw_rows", "test_multitask::test_mixtures_of_experts_by_hand"),
    "moe": ("test_rows_tasks::test_whole_model_from_the_raw_rows", "test_multitask::test_mixtures_of_experts_by_hand"),
    "nfm": (
        "test_rows_fields::test_whole_model_from_the_raw_rows",
        "test_interactions::test_nfm_is_a_network_over_the_sum_of_products",
        "test_compositions::test_logits_of_several_interactions_add",
    ),
    "omoe": ("test_rows_tasks::test_whole_model_from_the_raw_rows", "test_multitask::test_mixtures_of_experts_by_hand"),
    "opnn": (
        "test_rows_fields::test_whole_model_from_the_raw_rows",
        "test_interactions_networks::test_pnn_is_the_equations_of_the_paper",
    ),
    "pal": (
        "test_rows_tasks::test_pal_is_deepfm_times_what_is_seen",
        "test_whole_models::test_pal_serves_deepfm_and_judges_it_through_the_position",
    ),
    "ple": ("test_rows_tasks::test_whole_model_from_the_raw_rows", "test_multitask::test_ple_by_hand"),
    "pnn": (
        "test_rows_fields::test_whole_model_from_the_raw_rows",
        "test_interactions_networks::test_pnn_is_the_equations_of_the_paper",
    ),
    "position_tower": (
        "test_rows_tasks::test_position_tower_adds_a_logit_of_the_position",
        "test_whole_models::test_position_tower_serves_a_network_at_no_position_and_judges_it_at_the_true_one",
    ),
    "rnn": (
        "test_rows_sequences::test_whole_model_from_the_raw_rows",
        "test_recurrent::test_recurrent_pooling_equals_a_loop",
    ),
    "shared_bottom": (
        "test_rows_tasks::test_whole_model_from_the_raw_rows",
        "test_multitask::test_shared_bottom_is_one_network_and_a_tower_per_task",
    ),
    "sim": ("test_rows_sequences::test_whole_model_from_the_raw_rows", "test_sim::test_hard_search_equals_a_loop"),
    "sim_soft": (
        "test_rows_sequences::test_whole_model_from_the_raw_rows",
        "test_sim::test_soft_search_and_its_loss_equal_a_loop",
    ),
    "snr_aver": ("test_rows_tasks::test_whole_model_from_the_raw_rows", "test_routing::test_snr_by_hand"),
    "snr_trans": ("test_rows_tasks::test_whole_model_from_the_raw_rows", "test_routing::test_snr_by_hand"),
    "tensor_factorization": (
        "test_rows_tasks::test_whole_model_from_the_raw_rows",
        "test_multitask::test_tensor_factorization_multiplies_out_to_one_network_per_task",
    ),
    "two_tower": ("test_rows_sequences::test_whole_model_from_the_raw_rows", "test_catalogue::test_two_tower_by_hand"),
    "unbias": (
        "test_rows_tasks::test_whole_model_from_the_raw_rows",
        "test_whole_models::test_two_networks_that_share_nothing_and_their_heads",
    ),
    "wide_deep": (
        "test_rows_fields::test_whole_model_from_the_raw_rows",
        "test_wide_deep::test_wide_and_deep_adds_the_weights_of_ids_to_a_tower",
    ),
    "xdeepfm": (
        "test_rows_fields::test_whole_model_from_the_raw_rows",
        "test_interactions_networks::test_cin_is_a_loop_over_maps_and_pairs",
        "test_whole_models::test_logits_add_over_one_representation",
    ),
    "youtube_candidates": (
        "test_rows_sequences::test_whole_model_from_the_raw_rows",
        "test_catalogue::test_youtube_candidates_by_hand",
    ),
    "youtube_ranking": (
        "test_rows_sequences::test_whole_model_from_the_raw_rows",
        "test_whole_models::test_logits_add_over_one_representation",
    ),
}
"""Against numbers worked out by hand, or loops over the paper's equations: {name: file and test}."""

LIMITS: dict[str, tuple[str, ...]] = {
    "afm": ("test_interactions::test_afm_without_h_is_the_mean_of_products_and_with_p_of_n_it_is_fm",),
    "aman": ("test_entire_space::test_aman_takes_a_part_of_the_unclicked_as_negatives_and_none_is_base",),
    "autofis_fm": ("test_autofis::test_all_kept_at_weight_one_without_batch_norm_is_the_factorization_machine",),
    "autoint": (
        "test_interactions_fields::test_without_values_only_the_residual_is_left",
        "test_interactions_fields::test_equal_vectors_attend_uniformly",
    ),
    "bert4rec": ("test_catalogue::test_serving_is_the_path_of_a_hidden_last_item",),
    "bst": ("test_bst::test_without_positions_the_order_of_the_past_is_irrelevant",),
    "cgc": (
        "test_multitask::test_ple_without_own_experts_is_mmoe",
        "test_multitask::test_own_experts_of_a_task_learn_nothing_from_another_in_cgc",
    ),
    "cross_stitch": ("test_multitask::test_unstitched_and_unconstrained_networks_are_towers_of_their_own",),
    "dcn": ("test_models_by_hand::test_cross_without_biases_only_stretches_its_input",),
    "dcn_mix": ("test_interactions_networks::test_one_linear_expert_of_full_rank_is_the_matrix_form",),
    "dcn_v2": (
        "test_interactions_networks::test_rows_that_are_all_equal_make_the_first_dcn",
        "test_interactions_networks::test_cross_v2_without_layers_is_a_network_on_the_row",
    ),
    "deep_crossing": (
        "test_interactions_networks::test_units_without_weights_are_the_identity_and_no_units_logistic_regression",
    ),
    "deepfm": (
        "test_wide_deep::test_a_tower_of_zeros_leaves_the_other_branches",
        "test_wide_deep::test_deepfm_with_a_silent_machine_is_a_network",
    ),
    "deepmcp": ("test_deepmcp::test_off_it_is_the_base_model",),
    "dfm": ("test_delay::test_long_watched_rows_are_plain_negatives",),
    "dien": ("test_layers::test_attention_limits_of_the_cells",),
    "din": (
        "test_models_by_hand::test_din_with_a_constant_weight_is_the_base_model",
        "test_models_by_hand::test_repeating_the_past_doubles_the_interest_only_without_softmax",
    ),
    "dssm": ("test_interactions_networks::test_a_cosine_forgets_lengths_and_a_product_does_not",),
    "esmm": ("test_models_by_hand::test_esmm_where_every_click_converts_is_two_click_losses",),
    "esmm_ns": ("test_entire_space::test_separate_networks_are_two_models_of_one_task",),
    "ffm": ("test_interactions::test_ffm_with_the_same_vector_for_every_field_is_fm",),
    "fgcnn": ("test_interactions_fields::test_without_recombination_fgcnn_is_ipnn_beside_constant_zero_fields",),
    "fibinet": (
        "test_interactions_fields::test_bilinear_products_with_the_identity_are_plain_products",
        "test_interactions_fields::test_with_weights_of_one_both_groups_are_equal_and_with_two_the_second_is_fourfold",
    ),
    "fm": ("test_models_by_hand::test_fm_without_vectors_is_lr",),
    "fnn": ("test_fnn::test_a_linear_head_over_z_reproduces_the_linear_part_of_the_factorization_machine",),
    "fpenn": ("test_fpenn::test_without_spread_draw_bound_and_mean_are_one_field_aware_machine",),
    "fwfm": ("test_interactions::test_fwfm_starts_as_fm_and_with_lw_it_is_fm",),
    "hstu": ("test_hstu::test_repeating_an_event_adds_to_what_is_taken",),
    "ipnn": (
        "test_interactions_networks::test_inner_products_without_hidden_layer_and_with_all_ones_are_fm",
        "test_interactions_networks::test_pnn_without_products_is_a_tower",
    ),
    "l2_constrained": ("test_multitask::test_unstitched_and_unconstrained_networks_are_towers_of_their_own",),
    "ml_mmoe": ("test_multitask::test_one_layer_of_mixtures_is_mmoe",),
    "mmoe": ("test_multitask::test_one_expert_is_a_shared_bottom_and_tied_gates_are_one_gate",),
    "nfm": ("test_interactions::test_nfm_0_with_h_of_ones_is_fm",),
    "omoe": ("test_multitask::test_one_expert_is_a_shared_bottom_and_tied_gates_are_one_gate",),
    "opnn": (
        "test_interactions_networks::test_pnn_without_products_is_a_tower",
        "test_interactions_networks::test_outer_pairs_hold_inner_pairs",
    ),
    "pal": ("test_pal::test_constant_sight_is_plain_ctr",),
    "ple": ("test_multitask::test_ple_without_own_experts_is_mmoe",),
    "pnn": ("test_interactions_networks::test_pnn_without_products_is_a_tower",),
    "position_tower": ("test_pal::test_sum_and_product_agree_about_order",),
    "sim": ("test_sim::test_exact_unit_of_din",),
    "snr_aver": (
        "test_routing::test_open_aver_is_a_shared_bottom_of_the_sum_and_open_trans_a_layer_of_ones_own_over_all",
        "test_routing::test_diagonal_gates_are_networks_of_their_own",
    ),
    "snr_trans": (
        "test_routing::test_open_aver_is_a_shared_bottom_of_the_sum_and_open_trans_a_layer_of_ones_own_over_all",
        "test_routing::test_diagonal_gates_are_networks_of_their_own",
    ),
    "unbias": ("test_entire_space::test_unbias_with_a_constant_click_rate_is_base",),
    "wide_deep": ("test_wide_deep::test_a_tower_of_zeros_leaves_the_other_branches",),
    "xdeepfm": ("test_interactions_networks::test_one_map_of_ones_is_fm_or_the_square_of_the_sum",),
    "youtube_candidates": ("test_catalogue::test_equal_shares_correct_nothing",),
    "youtube_ranking": ("test_catalogue::test_one_second_for_every_watched_row_is_logistic_regression",),
}
"""Where a model becomes another or keeps what its card promises: {name: file and test}."""
